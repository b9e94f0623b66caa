import json
import shutil
from html import unescape
from pathlib import Path
from urllib.parse import unquote_plus

import pytest
from apps.driving import Open, address, drawn
from feature_browser.data.catalogue import read_card
from feature_browser.live.model import live_run
from feature_browser.pages.steering.experiment import (
    DIAL,
    DOSES,
    Experiment,
    dialled,
    experiment_of,
    run_dialled,
    run_doses,
    run_experiment,
)
from feature_browser.pages.steering.saved import directory, read, save, shelf
from rest import rest

from saelab.analysis.steering.edits import with_maxima
from saelab.config import UsageError
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.host.host import Host

PROMPT = "the big cat sat"
EXPERIMENT = Experiment(prompt=PROMPT, latents=(3,), strength=2.0, n_tokens=5)


@pytest.fixture
def live(live_runs: Path) -> Host:
    return live_run(read_card(live_runs / "topk", live_runs))


@pytest.fixture
def copy(live_runs: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write into."""
    return Path(shutil.copytree(live_runs / "topk", tmp_path / "topk"))


def fired(live_runs: Path) -> int:
    """A latent that fired while features were collected."""
    from saelab.analysis.records import Features

    return int(Features(live_runs / "topk").file["latent/max"].argmax())


# Experiments


def test_an_experiment_survives_the_address():
    given = Experiment(prompt='a "b"\n', latents=(1, 2), op="clamp", positions=3, error="drop")
    assert experiment_of(given.text) == given
    assert experiment_of(EXPERIMENT.text) == EXPERIMENT
    assert experiment_of('{"prompt": "a", "latents": ["5"], "positions": "all"}').latents == (5,)


@pytest.mark.parametrize(
    "changes",
    [{"latents": []}, {"latents": [-1]}, {"op": "explode"}, {"strength": "NaN"}, {"prompt": ""},
     {"positions": "first"}, {"n_tokens": 10_000}, {"seed": -1}, {"more": 1}],
)  # fmt: skip
def test_what_is_no_experiment_is_refused_in_one_sentence(changes: dict[str, object]):
    text = json.dumps(json.loads(EXPERIMENT.text) | changes)
    with pytest.raises(UsageError, match="This is not an experiment"):
        experiment_of(text)


def test_steering_adds_the_strength_in_units_of_the_latents_maximum(live: Host, live_runs: Path):
    from saelab.analysis.steering.generate import Sampling, steer
    from saelab.analysis.steering.interventions import Intervention

    latent = fired(live_runs)
    found = run_experiment(live, EXPERIMENT.model_copy(update={"latents": (latent,)}))
    model = with_maxima(live)
    assert model.maxima is not None
    amount = 2.0 * float(model.maxima[latent])
    change = Intervention(latents=(latent,), amount=amount, unit="absolute")
    other = steer(model, change, PROMPT, Sampling(n_tokens=5))
    assert found.steered[0].text == other.steered[0].text
    assert found.effect.n_changed == found.effect.n_rows == 1
    assert found.effect.shift == pytest.approx(other.effect.shift, rel=1e-4)


def test_doses_are_multiples_of_the_strength_and_start_at_the_plain_model(
    live: Host, live_runs: Path
):
    given = EXPERIMENT.model_copy(update={"latents": (fired(live_runs),), "strength": -2.0})
    dose = run_doses(live, given)
    assert dose is not None
    assert dose.strengths == tuple(-2.0 * part for part in DOSES)
    assert dose.kl[0] == pytest.approx(0, abs=1e-6)


def test_an_ablation_and_a_strength_of_zero_have_no_dose(live: Host):
    for changes in ({"op": "ablate"}, {"strength": 0.0}):
        assert run_doses(live, EXPERIMENT.model_copy(update=changes)) is None


@pytest.mark.parametrize(
    "changes",
    [{"op": "scale", "strength": 3.0, "temperature": 0.8, "seed": 5}, *rest({"strength": -2.0})],
)
def test_each_place_of_the_slider_says_what_an_experiment_of_that_strength_says(
    live: Host, live_runs: Path, changes: dict[str, object]
):
    given = EXPERIMENT.model_copy(update={"latents": (fired(live_runs),)} | changes)
    experiments = dialled(given)
    assert given in experiments
    found = [text.text for text in run_dialled(live, given)]
    alone = [run_experiment(live, experiment) for experiment in experiments]
    assert found == [one.steered[0].text for one in alone]
    # One place is the plain model's.
    neutral = 1.0 if given.op == "scale" else 0.0
    (plain,) = (i for i, one in enumerate(experiments) if one.strength == neutral)
    assert found[plain] == alone[plain].plain[0].text


def test_the_slider_stays_within_what_an_experiment_allows():
    assert dialled(EXPERIMENT.model_copy(update={"op": "ablate"})) == []
    assert dialled(EXPERIMENT.model_copy(update={"op": "scale", "strength": 1.0})) == []
    for one in dialled(EXPERIMENT.model_copy(update={"strength": 1e6})):
        assert experiment_of(one.text) == one


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"latents": (99,)}, "There is no latent 99"), ({"n_tokens": 40}, "exceed the 32"),
     ({"prompt": "zebra"}, "does not know"), ({"positions": 7}, "Position 7 lies behind"),
     ({"latents": (3, 3)}, "names a latent twice")],
)  # fmt: skip
def test_an_experiment_that_does_not_fit_the_model_is_said(
    live: Host, changes: dict[str, object], reason: str
):
    with pytest.raises(UsageError, match=reason):
        run_experiment(live, EXPERIMENT.model_copy(update=changes))


# Saved ones


def test_a_saved_experiment_is_read_again_and_listed_newest_first(tmp_path: Path):
    save(tmp_path, "one", EXPERIMENT, ("plain", "steered"))
    again = read(tmp_path, "one")
    assert (again.experiment, again.plain, again.steered) == (EXPERIMENT, "plain", "steered")
    (directory(tmp_path) / "old.json").write_text(
        again.model_copy(update={"saved": "2001-01-01T00:00:00+00:00"}).to_json()
    )
    assert list(shelf(tmp_path).saved) == ["one", "old"]


def test_a_name_that_is_taken_keeps_what_it_has(tmp_path: Path):
    save(tmp_path, "one", EXPERIMENT, ("a", "b"))
    with pytest.raises(UsageError, match="already"):
        save(tmp_path, "one", EXPERIMENT, ("c", "d"))
    assert read(tmp_path, "one").steered == "b"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 61, "a\n", "a\x00b"])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str):
    for use in (lambda: save(tmp_path, name, EXPERIMENT, ("", "")), lambda: read(tmp_path, name)):
        with pytest.raises(UsageError, match="cannot name an experiment"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other/9"}', " " * (1 << 20 | 1)])
def test_a_damaged_experiment_is_told_and_the_others_stay(tmp_path: Path, content: str):
    save(tmp_path, "good", EXPERIMENT, ("", ""))
    (directory(tmp_path) / "bad.json").write_text(content)
    found = shelf(tmp_path)
    assert list(found.saved) == ["good"]
    assert len(found.problems) == 1
    assert "bad.json" in found.problems[0]


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path):
    directory(tmp_path).write_text("a file where the directory should be")
    with pytest.raises(UsageError, match="must be writable"):
        save(tmp_path, "one", EXPERIMENT, ("", ""))


# The page


def opened(open_app: Open, root: Path, **more: str):
    return open_app(root, run="topk", view="steering", part="live", **more)


def test_the_form_starts_with_the_latent_it_was_asked_for(open_app: Open, live_runs: Path):
    app = opened(open_app, live_runs, latent="7")
    assert app.text_input(key="steer-latents").value == "7"
    assert "What does the model say when a latent is changed?" in drawn(app)


def test_what_is_submitted_becomes_the_address_and_both_texts_are_shown(
    open_app: Open, live_runs: Path
):
    latent = fired(live_runs)
    app = opened(open_app, live_runs, latent=str(latent))
    app.text_area(key="steer-prompt").set_value(PROMPT)
    app.number_input(key="steer-n_tokens").set_value(4)
    app.number_input(key="steer-strength").set_value(3.0)
    app.checkbox(key="steer-dose").check()
    app.button[0].click().run()
    given = experiment_of(address(app)["experiment"])
    assert (given.prompt, given.latents, given.strength) == (PROMPT, (latent,), 3.0)
    page = drawn(app)
    assert f"Add 3 \u00d7 its maximum to latent {latent}" in page
    assert "Baseline" in page
    # Plain, steered, and thirteen places of the slider, of which the experiment's own is shown.
    assert page.count('class="tok on neg"') == (2 + len(DIAL)) * 4
    assert page.count("data-notch") - page.count(" hidden><p") == 1
    assert "1 of 1 positions" in page
    assert "Error kept" in page
    assert len(app.get("plotly_chart")) == 1
    assert "What is said at each strength" in page


def test_a_deep_link_fills_the_form_and_says_the_convention_for_the_error(
    open_app: Open, live_runs: Path
):
    text = EXPERIMENT.model_copy(update={"op": "ablate", "error": "drop", "dose": True}).text
    app = opened(open_app, live_runs, experiment=text)
    assert app.selectbox(key="steer-op").value == "ablate"
    page = drawn(app)
    assert "Ablate latent 3" in page
    assert "Error dropped" in page
    assert "There is no dose to vary" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"latents": [99]}, "There is no latent 99"), ({"prompt": "<b>zebra</b>"}, "&lt;b&gt;zebra"),
     ({"op": "<i>"}, "This is not an experiment"), ({"n_tokens": 40}, "generate fewer")],
)  # fmt: skip
def test_what_does_not_fit_is_said_on_the_page_and_escaped(
    open_app: Open, live_runs: Path, changes: dict[str, object], said: str
):
    text = json.dumps(json.loads(EXPERIMENT.text) | changes)
    page = drawn(opened(open_app, live_runs, experiment=text))
    assert said in page
    assert "<b>zebra" not in page
    assert "<i>" not in page.split('class="page')[-1]


def test_a_form_that_is_no_experiment_keeps_what_was_typed(open_app: Open, live_runs: Path):
    app = opened(open_app, live_runs)
    app.text_input(key="steer-latents").set_value("5 cats")
    app.button[0].click().run()
    assert "latents.1" in drawn(app)
    assert "experiment" not in address(app)
    assert app.text_input(key="steer-latents").value == "5 cats"


def test_an_experiment_is_saved_listed_and_reloaded_with_what_it_said(open_app: Open, copy: Path):
    given = EXPERIMENT.model_copy(update={"unit": "a_max"})
    app = opened(open_app, copy.parent, experiment=given.text)
    app.text_input(key="experiment-name").set_value("big cats")
    app.button(key="save-experiment").click().run()
    assert address(app)["saved"] == "big cats"
    assert read(copy, "big cats").experiment == given
    assert "The same text as when “big cats” was saved." in drawn(app)
    assert ">big cats</a>" in drawn(opened(open_app, copy.parent))
    app.text_input(key="experiment-name").set_value("../up")
    app.button(key="save-experiment").click().run()
    assert "cannot name an experiment" in drawn(app)
    path = directory(copy) / "big cats.json"
    path.write_text(path.read_text().replace('"steered": "', '"steered": "<u>else '))
    again = drawn(opened(open_app, copy.parent, experiment=given.text, saved="big cats"))
    assert "it said: &lt;u&gt;else" in again


def test_without_features_another_unit_is_asked_for(open_app: Open, copy: Path):
    (copy / "features.h5").unlink()
    page = drawn(opened(open_app, copy.parent, experiment=EXPERIMENT.text))
    assert "saelab features" in page
    other = EXPERIMENT.model_copy(update={"unit": "a_max"}).text
    assert "Baseline" in drawn(opened(open_app, copy.parent, experiment=other))


def test_a_run_of_arrays_has_no_model_to_steer(open_app: Open, copy: Path):
    path = copy / "provenance.json"
    write_sealed_json(path, read_sealed_json(path) | {"model": None})
    assert "There is no model to steer" in drawn(opened(open_app, copy.parent))


def test_a_steering_that_took_no_effect_is_said(
    open_app: Open, live_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise RuntimeError("The logits did not notice the change.")

    monkeypatch.setattr("saelab.analysis.steering.generate.steer", fail)
    text = EXPERIMENT.model_copy(update={"seed": 77}).text
    assert "did not notice" in drawn(opened(open_app, live_runs, experiment=text))


def test_a_prompt_brought_along_is_the_forms_and_scores_stay_a_link_away(
    open_app: Open, live_runs: Path
):
    app = opened(open_app, live_runs, latent="3", prompt=PROMPT)
    assert app.text_area(key="steer-prompt").value == PROMPT
    assert 'href="?view=steering&amp;run=topk&amp;latent=3">Which latents steer?' in drawn(app)


def test_a_chat_goes_on_message_by_message_and_can_be_taken_back(
    open_app: Open, live_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    host = live_run(read_card(live_runs / "topk", live_runs))
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }} . {% endfor %}a"
    monkeypatch.setattr(host.lm.tokenizer._tokenizer, "chat_template", template)  # pyright: ignore[reportAttributeAccessIssue]
    given = Experiment(prompt="big cat", chat=True, latents=(3,), unit="absolute", n_tokens=2)
    app = opened(open_app, live_runs, experiment=given.text)
    assert drawn(app).count("</span> big cat</p>") == 2
    app.text_input(key="steer-say").set_value(" red dog ")
    app.button[-2].click().run()
    now = experiment_of(address(app)["experiment"])
    assert now == given.model_copy(update={"then": ("red dog",)})
    page = drawn(app)
    assert page.index("</span> big cat</p>") < page.index("</span> red dog</p>")
    assert page.count("</span> red dog</p>") == 2
    # A word that the model does not know is refused beside the field; the turns stay.
    app.text_input(key="steer-say").set_value("zebra dog")
    app.button[-2].click().run()
    page = drawn(app)
    assert experiment_of(address(app)["experiment"]) == now
    assert "does not know" in page
    assert "zebra" in page
    assert "This cannot be steered" not in page
    assert page.count("</span> red dog</p>") == 2
    assert app.text_input(key="steer-say").value == "zebra dog"
    back = page.split('data-set="experiment=')[1].split('"')[0]
    assert experiment_of(unquote_plus(unescape(back))) == given
    with pytest.raises(UsageError, match="only a chat goes on"):
        experiment_of(now.model_copy(update={"chat": False}).text)
