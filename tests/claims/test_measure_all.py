"""Claims one after another: what is kept, what is measured again, and what stops nothing."""

import errno

import pytest

from saelab.claims.claim import Claim
from saelab.claims.measure_all import ClaimOptions, Workspace, measure_claims
from saelab.claims.measured import Failed, Measured, read_row
from saelab.claims.outcome import Outcome, over_seeds
from saelab.config import UsageError

OPTIONS = ClaimOptions(n_seeds=2, device="cpu")


class Measures:
    """A claim's function, which counts how often it was called."""

    def __init__(self):
        self.calls = 0

    def claim(self, name="counts"):
        def measure(setting):
            self.calls += 1
            return Outcome({"seeds": over_seeds([float(s) for s in setting.seeds])}, {"a": True})

        return Claim(name, "2510.00000", "It counts.", "none", "nothing", measure)


def failing(error, name="fails"):
    def measure(_):
        raise error

    return Claim(name, "2510.00000", "It fails.", "none", "nothing", measure)


def measured(claims, out, options=OPTIONS, **how):
    return list(measure_claims(claims, Workspace(out, options), **how))


def test_a_finished_claim_is_kept_and_read_back_as_it_was(tmp_path):
    one = Measures()
    (first,) = measured([one.claim()], tmp_path)
    (second,) = measured([one.claim()], tmp_path)
    assert one.calls == 1
    assert isinstance(first, Measured)
    assert second == first == read_row(tmp_path / "outcomes" / "counts.json")
    assert first.outcome.figures["seeds"].value == 0.5


@pytest.mark.parametrize("change", [{"n_seeds": 3}, {"n_tokens": 20_000}])
def test_other_options_measure_again(tmp_path, change):
    one = Measures()
    measured([one.claim()], tmp_path)
    measured([one.claim()], tmp_path, ClaimOptions(**(vars(OPTIONS) | change)))
    assert one.calls == 2


def test_other_code_measures_again_and_removes_what_the_old_code_made(tmp_path, monkeypatch):
    one = Measures()
    measured([one.claim()], tmp_path)
    old = tmp_path / Workspace(tmp_path, OPTIONS).work.name
    (old / "runs").mkdir(parents=True)
    monkeypatch.setattr("saelab.claims.measure_all.shared_digest", lambda: "0" * 64)
    measured([one.claim()], tmp_path)
    assert one.calls == 2
    assert not old.exists()


def test_again_measures_again_without_the_old_runs(tmp_path):
    one = Measures()
    measured([one.claim()], tmp_path)
    work = Workspace(tmp_path, OPTIONS).work
    (work / "runs").mkdir(parents=True)
    measured([one.claim()], tmp_path, again=True)
    assert one.calls == 2
    assert not (work / "runs").exists()


def test_a_damaged_outcome_is_measured_again(tmp_path, capsys):
    one = Measures()
    measured([one.claim()], tmp_path)
    (tmp_path / "outcomes" / "counts.json").write_text('{"name": "counts"}')
    measured([one.claim()], tmp_path)
    assert one.calls == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), FileNotFoundError("gone")])
def test_a_claim_that_fails_is_told_and_stops_no_other(tmp_path, capsys, error):
    one = Measures()
    failed, found = measured([failing(error), one.claim()], tmp_path)
    assert failed == Failed("fails", f"{type(error).__name__}: {error}")
    assert isinstance(found, Measured)
    assert str(error) in capsys.readouterr().err
    assert not (tmp_path / "outcomes" / "fails.json").exists()


def test_a_full_disk_stops_all(tmp_path):
    one = Measures()
    with pytest.raises(OSError, match="No space"):
        measured([failing(OSError(errno.ENOSPC, "No space left")), one.claim()], tmp_path)
    assert one.calls == 0


def test_runs_of_one_configuration_are_trained_once_for_all_claims(tmp_path):
    import torch

    from saelab.claims.setting import Setting
    from saelab.claims.subject import Subject
    from saelab.sae.topk import TopKConfig
    from saelab.training.recipes import planted_run

    subject = Subject(tmp_path / "work", device="cpu")
    one, other = (Setting(tmp_path / n, subject, n_seeds=1) for n in ("one", "other"))
    store = one.planted(torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)))
    config = planted_run(store, TopKConfig(d_sae=8, k=2)).model_copy(update={"n_tokens": 2000})
    (here,), (there,) = one.runs({"a": config})["a"], other.runs({"b": config})["b"]
    assert here.path == there.path


def test_only_the_tiny_model_reads_the_tiny_text(tmp_path):
    with pytest.raises(UsageError, match="--text"):
        Workspace(tmp_path, ClaimOptions(model="gpt2"))
