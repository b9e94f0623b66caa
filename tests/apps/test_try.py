import shutil
from pathlib import Path

import numpy as np
import pytest
from apps.driving import Open, address, drawn
from feature_browser.data.catalogue import read_card
from feature_browser.live import chat
from feature_browser.live.model import live_run
from feature_browser.live.prompt import Prediction, PromptReading
from feature_browser.pages.try_it.lists import compare, found, order, order_pair
from feature_browser.pages.try_it.strip import strip, token_tip

from saelab.formats.json_file import read_sealed_json, write_sealed_json

PROMPT = "the big cat sat on a mat"


def reading(*firings: tuple[int, int, float, float], tokens: tuple[str, ...] = ("a", "b", "c")):
    """A reading with firings of position, latent, value and attribution."""
    position, latent, value, attribution = zip(*firings, strict=True)
    target = Prediction(0, "a", 0.5)
    return PromptReading(
        tokens=tokens,
        pieces=tokens,
        gap=" ",
        unread=("a special token", *[""] * (len(tokens) - 1)),
        log_prob=np.array([np.nan, *[-1.0] * (len(tokens) - 1)]),
        position=np.array(position),
        latent=np.array(latent),
        value=np.array(value),
        attribution=np.array(attribution),
        predicted=(target,),
        target=target,
    )


FIRINGS = reading((1, 7, 2.0, 0.5), (1, 3, -4.0, 0.1), (2, 7, 3.0, -0.2), (2, 9, 1.0, 0.9))
DENSITY = np.array([0.5] * 9 + [0.001])


def test_a_latent_is_listed_once_with_its_largest_value_and_summed_attribution():
    listed = found(FIRINGS, DENSITY)
    assert listed.latent.tolist() == [3, 7, 9]
    assert listed.value.tolist() == [-4.0, 3.0, 1.0]
    assert listed.peak.tolist() == [1, 2, 2]
    assert listed.n.tolist() == [1, 2, 1]
    assert listed.attribution == pytest.approx([0.1, 0.3, 0.9])


def test_the_orders_are_by_size_rarity_effect_and_number():
    listed = found(FIRINGS, DENSITY)
    ordered = {sort: listed.latent[order(listed, sort)].tolist() for sort in
               ("value", "rarity", "attribution", "latent")}  # fmt: skip
    assert ordered == {
        "value": [3, 7, 9],
        "rarity": [9, 3, 7],  # 1 * ln 1000 > 4 * ln 2 > 3 * ln 2
        "attribution": [9, 7, 3],
        "latent": [3, 7, 9],
    }


def test_on_one_token_only_its_latents_are_listed_and_none_on_a_special_one():
    assert found(FIRINGS, None, 1).latent.tolist() == [3, 7]
    assert len(found(FIRINGS, None, 0)) == 0
    assert np.isnan(found(FIRINGS, None).rarity).all()


def test_two_prompts_are_compared_over_the_union_by_difference():
    other = reading((1, 7, 9.0, 0.0), (1, 2, 0.5, 0.0))
    pair = compare(found(FIRINGS, None), found(other, None))
    assert pair.latent.tolist() == [2, 3, 7, 9]
    assert pair.first.tolist() == [0.0, -4.0, 3.0, 1.0]
    assert pair.second.tolist() == [0.5, 0.0, 9.0, 0.0]
    assert pair.latent[order_pair(pair, "difference")].tolist() == [7, 3, 9, 2]


def test_hostile_tokens_are_inert_in_strip_and_tip():
    hostile = ("<bos>", "<img src=x onerror=alert(1)>", '"\u202eevil\x00')
    given = reading((1, 7, 2.0, 0.5), tokens=hostile)

    def tip(position: int) -> str:
        return token_tip(given, position, found(given, None, position), lambda _: "<b>", "value")

    page = strip(given, {1: 2.0}, 2.0, tip)
    assert "<img" not in page
    assert "<b>" not in page
    assert "\u202e" not in page
    assert "\x00" not in page


# The page


def test_without_a_prompt_the_runs_own_texts_are_offered(open_app: Open, live_runs: Path):
    page = drawn(open_app(live_runs, run="topk", view="try"))
    assert "What fires on your text?" in page
    assert 'data-set="prompt=' in page


def test_a_prompt_shows_its_tokens_and_their_latents_with_links(open_app: Open, live_runs: Path):
    page = drawn(open_app(live_runs, run="topk", view="try", prompt=PROMPT))
    assert page.count('class="tok') == 8
    assert "latents fire on 7 tokens" in page
    assert "1 token not read, since training left such ones out" in page
    assert 'href="?run=topk&amp;latent=' in page
    assert "What comes next" in page


def test_a_picked_token_lists_its_latents_and_a_lit_latent_shades_the_prompt(
    open_app: Open, live_runs: Path
):
    page = drawn(open_app(live_runs, run="topk", view="try", prompt=PROMPT, pos="3"))
    assert "4 latents fire on “cat”" in page
    latent = page.split('data-set="latent=')[1].split('"')[0]
    lit = drawn(open_app(live_runs, run="topk", view="try", prompt=PROMPT, latent=latent))
    assert f"lit by latent <b>{latent}</b>" in lit
    assert 'class="tok on pos"' in lit
    assert "fires on 0" not in lit


@pytest.mark.parametrize("sort", ["value", "rarity", "attribution", "latent"])
def test_each_order_is_marked_in_its_heading(open_app: Open, live_runs: Path, sort: str):
    page = drawn(open_app(live_runs, run="topk", view="try", prompt=PROMPT, sort=sort))
    assert page.count("aria-sort") == 1


def test_each_token_is_listed_with_its_first_latents(open_app: Open, live_runs: Path):
    page = drawn(open_app(live_runs, run="topk", view="try", prompt=PROMPT, by="token"))
    rows = page.split("<tbody>")[1].split("<tr>")[1:]
    assert len(rows) == 8
    assert "a special token" in rows[0]
    whole = drawn(open_app(live_runs, run="topk", view="try", prompt=PROMPT, pos="3"))
    strongest = whole.split("<tbody>")[1].split("latent=")[2].split('"')[0]
    assert f'latent={strongest}"' in rows[3].split("</td>")[3]
    assert "cat" in rows[3]


def test_two_prompts_stand_side_by_side(open_app: Open, live_runs: Path):
    page = drawn(
        open_app(live_runs, run="topk", view="try", prompt=PROMPT, second="a dog ran and sat")
    )
    assert "latents fire in both" in page
    assert "In the second" in page
    assert "Difference" in page


def test_what_is_typed_becomes_the_address_and_comes_back_with_the_page(
    open_app: Open, live_runs: Path
):
    app = open_app(live_runs, run="topk", view="try")
    app.text_area(key="try-prompt").set_value(PROMPT).run()
    assert address(app)["prompt"] == PROMPT
    del app.query_params["prompt"]
    app.run()
    assert address(app)["prompt"] == PROMPT
    app.text_area(key="try-prompt").set_value("").run()
    assert "prompt" not in address(app)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"prompt": "<b>zebra</b>"}, "does not know “&lt;b&gt;zebra"),
        ({"prompt": "cat " * 40}, "9 more than the 32"),
        ({"prompt": PROMPT, "second": "zebra"}, "does not know “zebra”"),
        ({"prompt": PROMPT, "pos": "99"}, "There is no token 99; the prompt has 0 to 7."),
        ({"prompt": PROMPT, "pos": "<i>"}, "There is no token &lt;i&gt;"),
        ({"prompt": PROMPT, "latent": "99"}, "There is no latent 99; the SAE has 0 to 31."),
        ({"prompt": PROMPT, "target": "cat sat"}, "give exactly one token"),
    ],
)
def test_what_cannot_be_read_is_said_and_escaped(
    open_app: Open, live_runs: Path, more: dict[str, str], said: str
):
    page = drawn(open_app(live_runs, run="topk", view="try", **more))
    assert said in page
    assert "<b>zebra" not in page
    assert "<i>" not in page.split('class="page')[-1].split("</p>")[0]


def test_without_features_it_works_and_names_the_command(
    open_app: Open, live_runs: Path, tmp_path: Path
):
    path = Path(shutil.copytree(live_runs / "topk", tmp_path / "topk"))
    (path / "features.h5").unlink()
    page = drawn(open_app(tmp_path, run="topk", view="try", prompt=PROMPT))
    assert f"run saelab features {path}" in page
    assert "latents fire on 7 tokens" in page
    (path / "features.h5").write_bytes(b"damaged")
    page = drawn(open_app(tmp_path, run="topk", view="try", prompt=PROMPT))
    assert "is not a whole features file" in page


def test_a_model_that_failed_is_said(
    open_app: Open, live_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of <memory>\nmore")

    monkeypatch.setattr("feature_browser.pages.try_it.bench.read_prompt", fail)
    page = drawn(open_app(live_runs, run="topk", view="try", prompt="a mat sat on the cat"))
    assert "The model failed on this prompt: CUDA out of &lt;memory&gt;." in page


def test_a_run_of_arrays_has_nothing_to_try(open_app: Open, runs: Path, tmp_path: Path):
    path = Path(shutil.copytree(runs / "plain", tmp_path / "plain"))
    (path / "provenance.json").write_text('{"model": null, "corpus": {}}')
    assert "There is no model to try" in drawn(open_app(tmp_path, run="plain", view="try"))


def test_a_run_whose_model_is_not_recorded_whole_says_so(open_app: Open):
    page = drawn(open_app(run="signed", view="try", prompt="her ring"))
    assert "does not say which language model this is" in page


def test_without_attributions_the_rest_of_the_table_stands(
    open_app: Open, live_runs: Path, tmp_path: Path
):
    path = Path(shutil.copytree(live_runs / "topk", tmp_path / "topk"))
    config = path / "config.json"
    write_sealed_json(config, read_sealed_json(config) | {"site": "blocks.1.hook_resid_mid"})
    page = drawn(open_app(tmp_path, run="topk", view="try", prompt=PROMPT, sort="attribution"))
    assert "latents fire on 7 tokens" in page
    for absent in ("effect-of", "Effect on", "effects are on", "nan"):
        assert absent not in page


def test_a_prompt_goes_through_the_chat_template_where_there_is_one(
    open_app: Open, live_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    app = open_app(live_runs, run="topk", view="try", prompt="<bos> the cat")
    assert not app.toggle
    assert "The prompt begins with &lt;bos&gt;; every prompt gets one" in drawn(app)
    live = live_run(read_card(live_runs / "topk", live_runs))
    template = "{{ bos_token }}a big {{ messages[0].content }} sat"
    monkeypatch.setattr(live.lm.tokenizer._tokenizer, "chat_template", template)
    monkeypatch.setattr(chat, "has_chat_template", lambda model: True)
    chat.chats.clear()
    app = open_app(live_runs, run="topk", view="try", prompt="cat")
    assert "latents fire on 1 tokens" in drawn(app)
    (switch,) = app.toggle
    switch.set_value(True).run()
    assert address(app)["chat"] == "1"
    assert "latents fire on 4 tokens" in drawn(app)
    assert 'data-tip="sat · position 4' in drawn(app)
    chat.chats.clear()
