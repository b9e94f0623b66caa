"""A budget buys what the measured laws say: in time, wider for more of it, or a refusal."""

import pytest

from saelab.bench import budget
from saelab.bench.budget import BudgetSetting, choose, needed_tokens, usual_k
from saelab.bench.pace import measured, pace_of_kind, shares
from saelab.cli import main
from saelab.cli.train_budget import seconds_of
from saelab.config import UsageError
from saelab.training.run import Run

LARGE = BudgetSetting("topk", 2304, 2304, 10**9, {})
SITE = "blocks.0.hook_resid_post"


@pytest.mark.parametrize("kind", ["h200", "h100", "a100", "rtx-4090"])
def test_more_time_never_buys_a_narrower_sae_and_none_takes_longer(kind):
    pace = pace_of_kind(kind)
    found = [choose(seconds, LARGE, pace) for seconds in (20, 60, 600, 3600, 36_000)]
    widths = [each.d_sae for each in found]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] == 32 * 2304
    for seconds, each in zip((20, 60, 600, 3600, 36_000), found, strict=True):
        assert each.seconds <= seconds
        assert each.n_tokens >= budget.LEAST * needed_tokens(each.d_sae)
        assert each.n_tokens <= budget.MOST * needed_tokens(each.d_sae)
        assert each.half


@pytest.mark.parametrize("file", ["step-h100.json", "step-h200.json"])
def test_the_planned_step_is_the_measured_one(file):
    for step in measured(file)["steps"]:
        shape = step["shape"]
        if step["variant"] != "topk" or shape.get("dead"):
            continue
        given = {"d_sae": shape["d_sae"], "batch_size": shape["batch"], "sae": {"k": shape["k"]}}
        setting = BudgetSetting("topk", shape["d_in"], shape["d_in"], 10**9, given)
        pace = pace_of_kind(file[5:9])
        found = choose(600, setting, pace)
        planned = (found.seconds - pace.start) / (found.n_tokens / found.batch_size)
        assert planned == pytest.approx(step["seconds"] * shares()["train"]["value"], rel=0.1)


def test_what_is_given_stays():
    given = {"d_sae": 8192, "n_tokens": 10**7, "batch_size": 512, "half": False, "sae": {"k": 7}}
    found = choose(3600, BudgetSetting("batch-topk", 768, 768, 10**8, given), pace_of_kind("h200"))
    assert (found.d_sae, found.k, found.batch_size) == (8192, 7, 512)
    assert (found.n_tokens, found.half) == (10**7, False)
    assert not any(sentence.startswith(("d_sae", "k ")) for sentence in found.told)


def test_a_variant_without_k_gets_none():
    found = choose(600, BudgetSetting("standard", 768, 768, 10**8, {}), pace_of_kind("h200"))
    assert found.k is None


@pytest.mark.parametrize(
    ("seconds", "setting", "said"),
    [
        (9, LARGE, "a sensible run needs"),
        (
            600,
            BudgetSetting("topk", 768, 768, 1000, {}),
            "A store of 1k rows, read 20 times, is too sm",
        ),
        (
            60,
            BudgetSetting("topk", 768, 768, 10**8, {"n_tokens": 10**12}),
            "you asked for 1T; give --bu",
        ),
        (60, BudgetSetting("topk", 768, 768, 10**8, {"d_sae": 2**27}), "takes about"),
        (60, BudgetSetting("crosscoder", 768, 768, 10**8, {}), "No law here tells"),
    ],
)
def test_what_cannot_be_is_refused(seconds, setting, said):
    with pytest.raises(UsageError, match=said):
        choose(seconds, setting, pace_of_kind("h200"))


def test_times_are_read():
    assert [seconds_of(text) for text in ("90s", "10m", "1.5h", "30")] == [90, 600, 5400, 30]
    for text in ("", "0m", "ten", "10d", "-1m", "nan"):
        with pytest.raises(UsageError, match="is no time"):
            seconds_of(text)


def test_the_verb_chooses_says_why_and_goes_on_with_its_choice(
    small_store, tmp_path, capsys, monkeypatch
):
    words = ["train", "topk", "--activations", str(small_store.path), "--site", SITE]
    words += ["--n-tokens", "3000", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*words, "--budget", "1h"]) == 0
    out, err = capsys.readouterr()
    assert "FVU" in out
    config = Run(tmp_path / "run").config
    assert (config.sae.d_sae, config.sae.sparsity.k) == (32 * 16, usual_k(16))
    assert f"d_sae {32 * 16}, 32 times the rows' width" in err
    assert "k 4: " in err
    assert "lr " in err
    # Begun, it is not chosen again, however fast the machine is now.
    monkeypatch.setattr(budget, "pace_here", None)
    assert main([*words, "--budget", "1s"]) == 0
    assert Run(tmp_path / "run").config == config
    capsys.readouterr()
    assert main([*words, "--budget", "1h", "--live", "--out", str(tmp_path / "other")]) == 2
    assert "without --live" in capsys.readouterr().err
    assert main([*words[:-2], "--out", str(tmp_path / "other")]) == 2
    assert "--d-sae" in capsys.readouterr().err
