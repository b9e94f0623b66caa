"""The pages that need no single latent: Steering, Health, Compare and Home, in every state."""

import json
import re
import shutil
from pathlib import Path

import pytest
from apps.driving import Open, address, curves, drawn

from saelab.formats.json_file import read_sealed_json, write_sealed_json


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """Copies of two of the runs, to damage: `one` (evaluated, steered) and `two`."""
    shutil.copytree(runs / "signed", tmp_path / "one")
    shutil.copytree(runs / "plain", tmp_path / "two")
    return tmp_path


def change(path: Path, **values: object) -> None:
    write_sealed_json(path, read_sealed_json(path) | values)


# Steering


def test_steering_is_drawn_from_its_file_with_links_to_latents(open_app: Open):
    page = drawn(open_app(run="signed", view="steering"))
    assert "64 of 64 · hidden by filter: 0" in page
    assert page.count('class="mark') > 20
    assert 'href="?run=signed&amp;latent=9"' in page
    assert "9 (negative)" in page


def test_the_best_output_score_comes_first_and_pages_follow(open_app: Open):
    first = drawn(open_app(run="signed", view="steering"))
    assert first.split("<tbody>")[-1].startswith('<tr><td><a href="?run=signed&amp;latent=0">0<')
    last = drawn(open_app(run="signed", view="steering", page="99"))
    assert last.split("<tbody>")[-1].count("<tr>") == 64 % 25


def test_missing_input_scores_sort_last_and_say_why(open_app: Open):
    page = drawn(open_app(run="signed", view="steering", sort="input", page="3"))
    assert page.split("<tbody>")[-1].count("too few examples: 2") == 8


@pytest.mark.parametrize(
    ("keep", "n"), [("input", 32), ("output", 50), ("both", 18), ("neither", 0)]
)
def test_filters_keep_what_their_limits_say(open_app: Open, keep: str, n: int):
    page = drawn(open_app(run="signed", view="steering", keep=keep))
    assert f"{n} of 64 · hidden by filter: {64 - n}" in page
    assert ("faint" in page) == (n < 64)


def test_a_box_of_the_picture_lists_its_rows(open_app: Open):
    page = drawn(open_app(run="signed", view="steering", box="0.9,1,-1,1"))
    assert "6 of 64" in page
    assert "one cell of the picture" in page


def test_a_search_by_number_or_token_narrows_the_table(open_app: Open):
    app = open_app(run="signed", view="steering")
    app.text_input(key="search-steering").set_value("17").run()
    assert address(app)["q"] == "17"
    assert "word17" in drawn(app)
    assert "2 of 64" in drawn(app)


def test_nothing_found_is_said(open_app: Open):
    page = drawn(open_app(run="signed", view="steering", q="no such token"))
    assert "No latent passes these filters." in page


def test_tokens_and_the_prompt_are_escaped_on_the_steering_page(open_app: Open):
    page = drawn(open_app(run="signed", view="steering"))
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<i>she" not in page
    assert "\u202e" not in page


def test_success_is_shown_and_the_missing_concepts_name_their_command(open_app: Open, runs: Path):
    page = drawn(open_app(run="signed", view="steering"))
    assert "output ≥ 0.01" in page
    assert "7 (negative)</a> says 1.50 a text at 2 a_max" in page
    assert f"saelab steer {runs}/signed --concepts" in page


def test_without_scores_the_command_is_named(open_app: Open, runs: Path):
    assert f"saelab steer {runs}/plain --all" in drawn(open_app(run="plain", view="steering"))


def test_without_features_either_they_are_asked_for_first(open_app: Open):
    assert "features come first" in drawn(open_app(run="bare", view="steering"))


@pytest.mark.parametrize("content", [b"", b"not hdf5"])
def test_a_damaged_steering_file_is_said_and_the_rest_works(
    open_app: Open, copy: Path, content: bytes
):
    (copy / "one" / "steering.h5").write_bytes(content)
    assert "is not a whole steering file" in drawn(open_app(copy, run="one", view="steering"))
    assert "Top examples" in drawn(open_app(copy, run="one", latent="5"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"filters": [{}], "latents": []}'])
def test_a_damaged_success_file_leaves_the_scores(open_app: Open, copy: Path, content: str):
    (copy / "one" / "evaluation" / "steering_success.json").write_text(content)
    page = drawn(open_app(copy, run="one", view="steering"))
    assert "64 of 64" in page
    assert "Does a high score pay?" in page
    assert "steering_success.json" in page


def test_the_latent_page_tells_both_scores_and_leads_to_steering(open_app: Open):
    page = drawn(open_app(run="signed", latent="20"))
    card = page.split("Does it move the model?")[1].split("</section>")[0]
    assert "input score (negative)" in card
    assert "It fires on what it promises, and added, the model says it." in card
    assert "Added, it does not make the model say what it promises." in card
    assert 'href="?view=steering&amp;run=signed&amp;q=20"' in card


def test_the_latent_page_says_nothing_of_scores_that_are_not_there(open_app: Open):
    assert "Does it move the model?" not in drawn(open_app(run="plain", latent="5"))


# Health


def test_health_counts_dead_dense_and_duplicate_latents(open_app: Open):
    page = drawn(open_app(run="signed", view="health"))
    assert "1 of 32 latents are dead" in page
    assert 'href="?run=signed&amp;latent=31">31</a>' in page
    assert "dead 1<" in page
    assert "duplicate 0" in page


def test_health_shows_each_logged_curve(open_app: Open):
    app = open_app(run="signed", view="health")
    assert "30 logged steps" in drawn(app)
    # The log has no loss, learning rate or speed.
    assert curves(app) == ["FVU", "L0, active latents per token", "latents silent of late"]


def test_health_without_features_reads_the_evaluation(open_app: Open, copy: Path):
    (copy / "one" / "features.h5").unlink()
    density = {"frequency": [0.5] + [0.01] * 29 + [0.0] * 2, "n_tokens": 500}
    (copy / "one" / "evaluation" / "density.json").write_text(json.dumps(density))
    page = drawn(open_app(copy, run="one", view="health"))
    assert "2 of 32 latents are dead" in page
    assert "evaluation/density.json" in page
    assert "dense 1" in page


def test_health_with_neither_names_the_command(open_app: Open, runs: Path):
    app = open_app(run="bare", view="health")
    assert f"saelab features {runs}/bare" in drawn(app)
    assert "FVU" in curves(app)


def test_dictionary_figures_are_shown_by_their_keys(open_app: Open, copy: Path):
    path = copy / "one" / "evaluation" / "dictionary.json"
    path.write_text(json.dumps({"encoder_mean": 0.625, "nearest_mean": "odd", "more": 1}))
    page = drawn(open_app(copy, run="one", view="health"))
    assert "cosine of encoder and decoder</dt><dd>0.62" in page
    assert "cosine to the nearest" not in page


def test_health_shows_whatever_was_measured_table_by_table(open_app: Open, copy: Path, monkeypatch):
    """A measurement from elsewhere is shown like the others; a damaged one leaves the rest."""
    from saelab.evaluation.measurement import REGISTRY, Measurement, register_measurement

    monkeypatch.setattr(REGISTRY, "registered", {})
    register_measurement(
        Measurement(
            "toy",
            "A toy's table",
            lambda found: [("<toy>", f"{found['share']:.1%}", "a share")],
            lambda inputs: {"share": 0.25},
        )
    )
    (copy / "one" / "evaluation" / "toy.json").write_text(json.dumps({"share": 0.25}))
    page = drawn(open_app(copy, run="one", view="health"))
    assert "part=measured" in page
    assert "A toy's table" not in page
    page = drawn(open_app(copy, run="one", view="health", part="measured")).replace("&#x27;", "'")
    table = page.partition("A toy's table")[2]
    assert '<td>&lt;toy&gt;</td><td class="number">25.0%</td><td>a share</td>' in table
    assert "pending_female" in page.partition("Known features")[2]
    assert "evaluation/downstream.json" in page.partition("Not measured")[2]
    (copy / "one" / "evaluation" / "summary.json").write_text("{")
    page = drawn(open_app(copy, run="one", view="health", part="measured"))
    assert "summary.json" in page
    assert "How often do the latents fire?" in page


@pytest.mark.parametrize("name", ["features.h5", "evaluation/density.json", "metrics.jsonl",
                                  "weights.safetensors", "evaluation/dictionary.json"])  # fmt: skip
def test_one_damaged_file_leaves_the_rest_of_health(open_app: Open, copy: Path, name: str):
    (copy / "one" / name).write_bytes(b"{damaged")
    page = drawn(open_app(copy, run="one", view="health"))
    assert name.split("/")[-1] in page
    assert "Training" in page
    assert "How often do the latents fire?" in page


# Compare


def test_a_run_to_compare_with_is_chosen_from_the_others(open_app: Open):
    page = drawn(open_app(run="signed", view="compare"))
    assert "Compare signed with another run" in page
    assert "other=plain" in page
    assert "other=signed" not in page


def test_runs_of_equal_weights_match_latent_by_latent(open_app: Open):
    page = drawn(open_app(run="bare", view="compare", other="plain"))
    assert '32 <span class="sub">100' in page
    assert "All options are the same." in page
    listed = re.findall(r"latent=([0-9]+)", page.split("<tbody>")[-1].split("</tbody>")[0])
    assert list(dict.fromkeys(listed)) == [str(latent) for latent in range(25)]


def test_kinds_can_be_listed_alone_for_either_run(open_app: Open):
    page = drawn(open_app(run="bare", view="compare", other="plain", keep="unique", side="other"))
    assert "0 unique of 32 latents" in page
    assert "No latent is of this kind." in page


def test_the_figures_of_both_runs_and_the_options_that_differ_are_listed(
    open_app: Open, copy: Path
):
    change(copy / "two" / "evaluation" / "reconstruction.json", fvu=0.05)
    page = drawn(open_app(copy, run="one", view="compare", other="two"))
    assert "+0.0220" in page
    assert "abs-topk" in page.split("Option that differs")[1]


@pytest.mark.parametrize("other", ["../../etc", "signed", "<b>"])
def test_an_unknown_or_equal_run_leads_back_to_the_choice(open_app: Open, other: str):
    page = drawn(open_app(run="signed", view="compare", other=other))
    assert "Compare signed with another run" in page
    assert "<b>" not in page.split("Compare with")[0].split("</nav>")[1]


def test_another_site_is_refused_in_one_sentence_and_figures_are_kept(open_app: Open, copy: Path):
    change(copy / "two" / "config.json", site="blocks.0.hook_resid_post")
    page = drawn(open_app(copy, run="one", view="compare", other="two"))
    assert "Latents are matched only at the same place" in page
    assert "CE recovered" in page
    assert "Which latents do they share?" not in page


def test_another_width_is_refused_in_one_sentence(open_app: Open, copy: Path):
    import torch

    from saelab.sae.storage import load_sae, save_sae

    path = copy / "two" / "weights.safetensors"
    narrow = load_sae(path).config.build(4, torch.Generator().manual_seed(0))
    save_sae(narrow, path)
    page = drawn(open_app(copy, run="one", view="compare", other="two"))
    assert "writes to 8 dimensions, two to 4" in page


def test_different_text_is_pointed_out(open_app: Open, copy: Path):
    change(copy / "two" / "provenance.json", corpus={"source": "elsewhere"})
    page = drawn(open_app(copy, run="one", view="compare", other="two"))
    assert "trained on different text" in page


def test_damaged_weights_leave_the_figures(open_app: Open, copy: Path):
    (copy / "two" / "weights.safetensors").write_bytes(b"damaged")
    page = drawn(open_app(copy, run="one", view="compare", other="two"))
    assert "is not a whole safetensors file" in page
    assert "CE recovered" in page.split("one against two")[1]


def test_a_run_without_others_has_nothing_to_compare_with(open_app: Open, runs: Path):
    assert "nothing to compare with" in drawn(open_app(runs / "plain", view="compare"))


# Home


def test_cards_show_the_figures_known_features_and_what_is_missing(open_app: Open, runs: Path):
    page = drawn(open_app(view="runs"))
    assert "3 runs in" in page
    assert "1 of 2 known features" in page
    assert f"saelab features {runs}/bare" in page
    assert f"saelab steer {runs}/plain --all" in page
    assert "99.10" in page
    assert "1 of 32" in page


def test_a_damaged_evaluation_is_told_on_the_card_and_the_run_stays(open_app: Open, copy: Path):
    (copy / "one" / "evaluation" / "recovery.json").write_text("{")
    page = drawn(open_app(copy, view="runs"))
    assert "recovery.json is not whole JSON" in page
    assert ">one</a>" in page
    assert ">two</a>" in page


def test_changing_the_view_drops_filters_of_the_old_one(open_app: Open):
    page = drawn(open_app(run="signed", view="steering", keep="both", box="0,1,0,1", sort="rank"))
    bar = page.split("</nav>")[0]
    assert "keep=" not in bar
    assert "box=" not in bar


def test_an_imported_run_says_where_it_came_from(open_app: Open, copy: Path):
    change(copy / "two" / "config.json", n_tokens=0, target_site="blocks.2.hook_mlp_out")
    (copy / "two" / "metrics.jsonl").unlink()
    facts: dict[str, object] = {
        "imported_from": "SAELens topk: <b>a</b>/b",
        "licence": "MIT",
        "notes": ["Rows <i>"],
    }
    facts["stated"] = {"fvu": [0.1, 0.2], "l0": [7, 7], "ce": "x"}
    change(copy / "two" / "provenance.json", **facts)
    assert "imported from SAELens topk" in drawn(open_app(copy, view="runs"))
    for view in ("welcome", "training"):
        page = drawn(open_app(copy, run="two", view=view))
        for said in ("SAELens topk: &lt;b&gt;a&lt;/b&gt;/b", "MIT", "Rows &lt;i&gt;",
                     "0.1 to 0.2", "stated L0", "7"):  # fmt: skip
            assert said in page
        assert "stated CE" not in page
    assert "writes those at <b>blocks.2.hook_mlp_out</b>" in drawn(
        open_app(copy, run="two", view="welcome")
    )
    page = drawn(open_app(copy, run="two", view="health"))
    assert "Not trained here: imported from SAELens topk" in page


def test_of_several_sites_no_steering_is_asked_for(open_app: Open, copy: Path):
    change(copy / "two" / "config.json", site="blocks.0.hook_resid_post+blocks.1.hook_resid_post")
    assert "saelab steer" not in drawn(open_app(copy / "two", view="runs"))
    page = drawn(open_app(copy, run="two", view="steering"))
    assert "two reads 2 sites, and steering changes the model at one" in page
    # Latents that reconstruct both sites write before what they read: no circuit is offered.
    page = drawn(open_app(copy, run="two", view="circuit"))
    assert "No circuit of this run" in page
    assert "saelab circuit" not in page
