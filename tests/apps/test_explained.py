"""What language models say of latents is shown with its source, and never as certain as a label."""

import shutil
from pathlib import Path

import pytest
from apps.driving import Open, drawn
from feature_browser.data.catalogue import read_card
from feature_browser.data.explained import explained
from feature_browser.data.known import Known, Match
from feature_browser.data.labels import Labels, LatentNames, Name
from feature_browser.draw.names import named

from saelab.analysis.explain.judging import Merit
from saelab.analysis.explain.records import TEXTS, Explanation, ExplanationSet, read_set
from saelab.analysis.explain.scores import OWN, ExplanationScores, write_scores
from saelab.analysis.notes import Notes, mark_of

HOSTILE = "<script>alert(1)</script> \u202eword"


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """A run with two sets of explanations."""
    path = Path(shutil.copytree(runs / "plain", tmp_path / "plain"))
    for model, texts in {"big": {5: HOSTILE, 6: "six"}, "small": {5: "five"}}.items():
        found = ExplanationSet(path / "explanations" / model, model, "file", "explain/1", "ab" * 32)
        found.by_latent = {n: Explanation(text, "2024-07-26T00:00") for n, text in texts.items()}
        found.write()
    return path


def test_the_latents_page_shows_every_explanation_with_its_source(open_app: Open, copy: Path):
    page = drawn(open_app(copy.parent, run="plain", view="latent", latent="5"))
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page
    assert "\u202e" not in page
    for source in ("big · explain/1 · 2024-07-26 · not judged", "small · explain/1"):
        assert source in page


def test_of_several_judges_the_least_score_is_shown_and_sorts(open_app: Open, copy: Path):
    path = copy / "explanations" / "small"
    for judge, share in (("one", 0.9), ("two", 0.6)):
        merit = {"detection": Merit(share, None, 4)}
        write_scores(read_set(path), ExplanationScores(judge, by_source={OWN: {5: merit}}))
    page = drawn(open_app(copy.parent, run="plain", view="latent", latent="5"))
    assert "small · explain/1 · 2024-07-26 · score 0.60 by two" in page
    assert page.index("five") < page.index("&lt;script&gt;alert(1)")
    names = LatentNames.of(read_card(copy, copy.parent))
    assert names.name(5) == "five (small, score 0.60)"


def test_all_latents_lists_and_finds_them(open_app: Open, copy: Path):
    page = drawn(open_app(copy.parent, run="plain", view="latents", q="SIX"))
    assert ">six</span>" in page
    assert "1 by explanation" in page


def test_a_label_is_before_an_explanation_and_that_before_counting(copy: Path):
    card = read_card(copy, copy.parent)
    Notes(copy).write(6, "label", "mine")
    names = LatentNames.of(card)
    assert names.name(6) == "mine"
    assert names.name(5) in {
        "five (small, not judged)",
        "<script>alert(1)</script> ⟨202E⟩word (big, not judged)",
    }
    assert names.name(7).startswith("fires on: ")


def test_a_new_or_damaged_set_is_seen_at_once(open_app: Open, copy: Path):
    card = read_card(copy, copy.parent)
    assert explained(card).problem == ""
    (copy / "explanations" / "big" / TEXTS).write_text("{}")
    found = explained(card)
    assert "big" in found.problem
    assert [told.model for told in found.by_latent[5]] == ["small"]
    page = drawn(open_app(copy.parent, run="plain", view="latent", latent="5"))
    assert "five" in page
    assert found.problem[:40] in page


def test_a_weak_name_never_looks_certain():
    match = {share: Match("name_female", share, 0.9, {}) for share in (0.05, 0.2, 0.8)}
    names = LatentNames(Labels(), Known([], [], dict(enumerate(match.values()))))
    assert [names.best(i) for i in range(3)] == [
        Name(), Name("name female", "F1 0.20", score=0.2),
        Name("name female", "F1 0.80", sure=True, score=0.8),
    ]  # fmt: skip
    assert names.name(1) == "perhaps name female (F1 0.20)"
    assert "name" in named(names.best(2))
    assert 'class="sub"' in named(names.best(1))


def test_an_accepted_explanation_names_its_latent_and_a_rejected_one_never(
    open_app: Open, copy: Path
):
    card = read_card(copy, copy.parent)
    big, small = mark_of("input", explained(card).by_latent[5][0].text), mark_of("input", "five")
    Notes(copy).write(5, "verdict", f"-{big}")
    assert LatentNames.of(card).name(5) == "five (small, not judged)"
    Notes(copy).write(5, "verdict", f"+{small}")
    assert LatentNames.of(card).best(5).sure
    page = drawn(open_app(copy.parent, run="plain", view="latent", latent="5"))
    assert f'data-verdict="0{small}" aria-pressed="true"' in page
    assert f'data-verdict="0{big}" aria-pressed="true"' in page
    Notes(copy).write(5, "verdict", f"-{small}")
    assert LatentNames.of(card).name(5).startswith("fires on: ")
    for keep, n in (("accepted", 0), ("rejected", 1), ("explained", 2)):
        page = drawn(open_app(copy.parent, run="plain", view="latents", keep=keep, sort="score"))
        assert f"{n} of 32 latents" in page


def test_what_a_latent_does_is_shown_apart(open_app: Open, copy: Path):
    path = copy / "explanations" / "does"
    texts = ExplanationSet(path, "big", "file", "steered/1", "ab" * 32, side="output")
    texts.by_latent = {5: Explanation("dogs", "2024-07-26T00:00")}
    texts.write()
    page = drawn(open_app(copy.parent, run="plain", view="latent", latent="5"))
    fires, does = page.split("What makes it fire")[1].split("What it does to the text")
    assert "five" in fires
    assert "dogs" in does
    assert "dogs" not in fires


def test_one_key_explains_the_latent_if_a_model_is_configured(
    open_app: Open, copy: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not [
        b for b in open_app(copy.parent, run="plain", latent="5").button if b.key == "explain"
    ]
    monkeypatch.setenv("SAELAB_LLM", "m")
    # Nobody listens there.
    monkeypatch.setenv("SAELAB_BASE_URL", "http://127.0.0.1:9/v1")
    app = open_app(copy.parent, run="plain", latent="5")
    app.button("explain").click().run(timeout=60)
    assert "with other weights" in drawn(app)
