import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from apps.driving import APP, Open, address, drawn
from feature_browser.data import catalogue
from feature_browser.data.catalogue import read_catalogue

from saelab.analysis.records import Features


def test_without_runs_it_says_which_command_makes_one(open_app: Open, tmp_path: Path):
    assert f"saelab demo --out {tmp_path}/demo" in drawn(open_app(tmp_path))


def test_streamlit_adds_nothing_of_its_own(open_app: Open):
    # It prints strings that stand alone in a script, and serves the files of a `pages` beside it.
    assert not open_app(run="signed").markdown
    assert not (APP.parent / "pages").exists()


def test_the_list_of_runs_shows_every_finished_run(open_app: Open):
    page = drawn(open_app(view="runs"))
    assert all(f">{name}</a>" in page for name in ("signed", "plain", "bare"))


WRONG_CONFIGS = [
    b"{}", b"[]", b"3", b"{", b"", b"\xff\xfe", b'{"a": ' * 5000,
    b'{"n_tokens": 1' + b"0" * 5000 + b"}",
    b'{"sae": {"variant": "topk", "d_sae": 1e999}, "site": "a", "n_tokens": 1}',
    b'{"sae": {"variant": "topk", "d_sae": 0}, "site": "a", "n_tokens": 1}',
    b'{"sae": {"variant": "topk", "d_sae": 4}, "site": "a", "n_tokens": [1]}',
    b'{"sae": [], "site": "a", "n_tokens": 1}',
]  # fmt: skip


def damage(root: Path) -> list[str]:
    """Runs of every kind that cannot be read."""
    for i, config in enumerate(WRONG_CONFIGS):
        (root / f"config{i}").mkdir()
        (root / f"config{i}" / "config.json").write_bytes(config)
    for kind in ("directory", "pipe", "loop"):
        for name in ("config.json", "weights.safetensors", "provenance.json"):
            run = root / f"{kind}-{name}"
            shutil.copytree(root / "whole", run)
            (run / name).unlink()
            if kind == "directory":
                (run / name).mkdir()
            elif kind == "pipe":
                os.mkfifo(run / name)
            else:
                (run / name).symlink_to(run / name)
    for i in range(len(WRONG_CONFIGS)):
        (root / f"config{i}" / "weights.safetensors").write_bytes(b"")
    shutil.copytree(root / "whole", root / os.fsdecode(b"\xff"))
    names = [path.name for path in root.iterdir() if path.name != "whole"]
    return [name.encode(errors="surrogateescape").decode(errors="replace") for name in names]


def test_damaged_runs_are_told_beside_the_others_and_by_their_own_pages(
    open_app: Open, runs: Path, tmp_path: Path
):
    shutil.copytree(runs / "plain", tmp_path / "whole")
    damaged = damage(tmp_path)
    found = read_catalogue(tmp_path)
    assert list(found.runs) == ["whole"]
    assert sorted(found.damaged) == sorted(damaged)
    assert not any("\n" in sentence for sentence in found.damaged.values())
    page = drawn(open_app(tmp_path, view="runs"))
    assert page.count("was left out") == len(damaged)
    own = drawn(open_app(tmp_path, run="config0", latent="5"))
    assert "The run config0 cannot be shown" in own
    assert "config0/provenance.json" in own


def test_figures_of_the_wrong_kind_are_not_shown(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "plain", tmp_path / "run")
    path = tmp_path / "run" / "evaluation"
    (path / "reconstruction.json").write_text('{"l0": "4", "fvu": NaN, "dead": -1}')
    (path / "downstream.json").write_text('{"ce_recovered": [1]}')
    (path / "recovery.json").write_text('{"features": [{"f1": "high"}, 3, {}, {"f1": 0.9}]}')
    card = read_catalogue(tmp_path).runs["run"]
    assert [card.l0, card.fvu, card.ce_recovered, card.silent] == [None] * 4
    assert (card.n_known, card.found) == (1, 1)


@pytest.mark.parametrize(
    ("change", "view"),
    [
        ({"features": [{}]}, "known"),
        ({"features": [{"label": "a", "f1": "high"}]}, "known"),
        ({"latents": {"label": ["year"] * 99, "f1": [0.5] * 99, "auroc": [0.5] * 99}}, "latent"),
        ({"latents": {"label": ["no such"], "f1": [1.0], "auroc": [1.0]}}, "latents"),
    ],
)
def test_an_evaluation_that_does_not_fit_is_said_on_the_page(
    open_app: Open, runs: Path, tmp_path: Path, change: dict[str, object], view: str
):
    shutil.copytree(runs / "signed", tmp_path / "run")
    path = tmp_path / "run" / "evaluation" / "recovery.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    page = drawn(open_app(tmp_path, run="run", view=view))
    assert "This cannot be shown" in page
    assert "recovery.json" in page


def test_a_page_whose_files_contradict_each_other_says_so(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
):
    def contradict(*_: object) -> None:
        raise IndexError("index 99 is out of bounds")

    monkeypatch.setattr("feature_browser.pages.health.view._headline", contradict)
    page = drawn(open_app(run="signed", view="health"))
    assert "saelab verify" in page
    assert "index 99 is out of bounds" in page


def test_a_deep_link_shows_its_latent(open_app: Open):
    page = drawn(open_app(run="signed", latent="5"))
    assert 'data-latent="5"' in page
    assert "Top examples" in page


def test_without_a_latent_the_best_match_is_shown_and_put_in_the_address(open_app: Open):
    assert address(open_app(run="signed"))["latent"] == "5"


def test_without_a_run_the_first_with_features_is_chosen_and_put_in_the_address(open_app: Open):
    assert address(open_app())["run"] == "plain"


@pytest.mark.parametrize(("button", "expected"), [("next", "6"), ("previous", "4")])
def test_the_buttons_change_the_latent_and_the_address(open_app: Open, button: str, expected: str):
    app = open_app(run="signed", latent="5")
    app.button(key=button).click().run()
    assert f'data-latent="{expected}"' in drawn(app)
    assert address(app)["latent"] == expected


def test_a_random_latent_is_one_that_fires(open_app: Open):
    app = open_app(run="signed", latent="31")
    app.button(key="random").click().run()
    assert "This latent is dead" not in drawn(app)


def test_a_typed_number_is_gone_to(open_app: Open):
    app = open_app(run="signed", latent="5")
    app.text_input(key="go-to-latent").set_value("12").run()
    assert address(app)["latent"] == "12"


@pytest.mark.parametrize(("latent", "button"), [("0", "previous"), ("31", "next")])
def test_the_ends_have_no_further_latent(open_app: Open, latent: str, button: str):
    assert open_app(run="signed", latent=latent).button(key=button).disabled


@pytest.mark.parametrize("latent", ["32", "-1", "her", "<b>"])
def test_an_unknown_latent_is_answered_on_the_page(open_app: Open, latent: str):
    page = drawn(open_app(run="signed", latent=latent))
    assert "There is no latent" in page
    assert "<b>" not in page.split("There is no latent")[1].split("</h1>")[0]


def test_an_unknown_run_is_answered_with_the_runs_there_are(open_app: Open):
    page = drawn(open_app(run="../../etc"))
    assert "There is no run ../../etc" in page
    assert ">signed</a>" in page


def test_a_dead_latent_says_so_and_shows_no_examples(open_app: Open):
    page = drawn(open_app(run="signed", latent="31"))
    assert "This latent is dead" in page
    assert "Top examples" not in page


def test_tokens_are_escaped_and_invisible_characters_shown(open_app: Open):
    page = drawn(open_app(run="signed", latent="1"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "\u202e" not in page


def test_signed_codes_show_their_negative_side(open_app: Open):
    page = drawn(open_app(run="signed", latent="5"))
    assert "Negative side" in page
    assert "on neg" in page


def test_unsigned_codes_have_no_negative_side(open_app: Open):
    assert "Negative side" not in drawn(open_app(run="plain", latent="5"))


def test_a_run_without_labels_shows_its_latents_all_the_same(open_app: Open):
    assert "No known features" in drawn(open_app(run="plain", latent="5"))


def test_a_run_without_features_says_how_to_collect_them(open_app: Open, runs: Path):
    assert f"saelab features {runs}/bare" in drawn(open_app(run="bare"))


def test_the_whole_text_of_an_example_can_be_shown(open_app: Open):
    assert 'class="beyond"' in drawn(open_app(run="signed", latent="5", context="full"))


def test_known_features_lead_to_their_latents(open_app: Open):
    page = drawn(open_app(run="signed", view="known"))
    assert "1 of 2 known features have a latent of their own" in page
    assert "?run=signed&amp;latent=5" in page
    assert "6 (negative)" in page


def test_without_labels_the_known_features_say_why_there_are_none(open_app: Open):
    assert "saelab evaluate" in drawn(open_app(run="plain", view="known"))


def test_the_training_view_shows_the_configuration(open_app: Open):
    assert "blocks.2.hook_resid_post" in drawn(open_app(run="signed", view="training"))


def test_the_table_hides_latents_that_never_fire_and_says_so(open_app: Open):
    page = drawn(open_app(run="signed", view="latents"))
    assert "31 of 32 latents · hidden: 1 dead" in page


def test_the_search_finds_latents_by_known_feature(open_app: Open):
    app = open_app(run="signed", view="latents")
    app.text_input(key="search-latents").set_value("year").run()
    assert address(app)["q"] == "year"
    assert "latent=6" in drawn(app)


def test_the_search_finds_the_latents_that_fire_on_a_token(open_app: Open, runs: Path):
    from saelab.analysis.records import Features

    # Latent i fires on token i alone; take one that does not raise it too.
    features = Features(runs / "plain")
    raised = features.file["logits/top_tokens"]
    latent = next(i for i in range(10, 31) if i not in raised[i])
    page = drawn(open_app(run="plain", view="latents", q=f"word{latent}"))
    assert f">{latent}</a>" in page


def test_strata_are_a_choice_that_says_how_many_firings_each_example_stands_for(open_app: Open):
    page = drawn(open_app(run="signed", latent="5", show="strata"))
    assert page.count('data-kind="strata"') == 5
    assert "0 to 20 % of firings" in page
    assert "each stands for" in page
    assert "Top examples" not in page


def test_silent_texts_and_near_misses_are_a_choice(open_app: Open):
    page = drawn(open_app(run="signed", latent="5", show="silent"))
    assert "Near misses" in page
    assert "Silent texts" in page
    assert "90.0\u00a0%" in page.split("Near misses")[1].split("Silent texts")[0]
    silent = page.split('data-kind="silent"')[1]
    assert 'data-v="0"' in silent


def test_the_latents_that_fire_together_and_the_heads_are_shown(open_app: Open):
    page = drawn(open_app(run="signed", latent="5"))
    assert "Share of each head" in page
    assert 'href="?view=attention&amp;run=signed&amp;latent=5"' in page
    assert "Neighbours · cosine of decoders" in page


def test_the_strongest_examples_of_heads_lead_to_the_same_examples_sources(
    open_app: Open, runs: Path
):
    page = drawn(open_app(run="signed", latent="5"))
    record = Features(runs / "signed")[5]
    found = [*record.examples["top"], *record.examples["negative"]]
    links = re.findall(r'href="\?view=attention&amp;run=signed&amp;latent=5&amp;([^"]+)"', page)
    there = [{"example": str(i), "pos": str(example.position)} for i, example in enumerate(found)]
    there[0].pop("example")  # the default
    assert [dict(parse_qsl(link.replace("&amp;", "&"))) for link in links] == there


def test_a_listing_reads_only_what_has_changed(runs: Path, tmp_path: Path, monkeypatch):
    root = Path(shutil.copytree(runs, tmp_path / "copy"))
    first = read_catalogue(root)
    read: list[str] = []
    real = catalogue.read_card
    monkeypatch.setattr(catalogue, "read_card", lambda p, r: (read.append(p.name), real(p, r))[1])
    assert read_catalogue(root).runs == first.runs
    assert read == []
    changed = root / "plain" / "evaluation" / "reconstruction.json"
    changed.write_text('{"fvu": 0.5, "l0": 4.0, "dead": 1, "d_sae": 32}')
    os.utime(changed, ns=(1, 1))
    assert read_catalogue(root).runs["plain"].fvu == 0.5
    assert read == ["plain"]
    (root / "plain" / "weights.safetensors").unlink()
    assert "plain" in read_catalogue(root).damaged
