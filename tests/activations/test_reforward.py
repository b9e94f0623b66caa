"""A store whose checksums are right and whose rows are wrong is found by running the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.activations.reforward import reforward
from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify
from saelab.activations.writer import StoreWriter
from saelab.cli import main
from saelab.config import UsageError

HOOK, Z = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"


def copied(store, path, dtype="float32", change=lambda rows: rows):
    """The same store with another number type, or with changed rows, and new checksums."""
    manifest = store.manifest.model_copy(update={"dtype": dtype})
    columns = store.tokens(0)
    rows = {s.name: store.site(s.name).rows(0, store.n_rows) for s in manifest.sites}
    with StoreWriter.create(path, manifest) as writer:
        writer.write_unit(0, {**rows, HOOK: change(rows[HOOK])}, replace(columns))
    return ActivationStore(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_was_harvested_agrees_with_the_model(small_store, random_lm, tmp_path, dtype):
    store = copied(small_store, tmp_path / "s", dtype)
    results = reforward(store, random_lm, 30)
    assert [r.site for r in results] == [HOOK, Z]
    assert all(r.agrees for r in results)
    assert results[0].rows == results[1].rows > 150
    assert results[0].error < {"float32": 1e-6, "float16": 2**-11, "bfloat16": 2**-8}[dtype]


WRONG = {
    "rows of other tokens": lambda rows: rows.roll(1, 0),
    "columns in another order": lambda rows: rows.flip(1),
    "another scale": lambda rows: rows * 1.2,
    "one wrong row": lambda rows: rows.index_fill(0, torch.tensor([5]), 0.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_were_written_wrong_are_found_though_every_byte_is_whole(
    small_store, random_lm, tmp_path, name
):
    store = copied(small_store, tmp_path / "s", change=WRONG[name])
    assert verify(store.path) == []
    wrong, right = reforward(store, random_lm, 1000)
    assert not wrong.agrees
    assert right.agrees


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_per_cent_is_found_in_every_stored_number_type(small_store, random_lm, tmp_path, dtype):
    noise = torch.randn(small_store.n_rows, 16, generator=torch.Generator().manual_seed(0))

    def spoilt(rows):
        return rows + 0.01 * rows.norm(dim=1, keepdim=True) * noise / noise.norm(dim=1)[:, None]

    for n, change in enumerate((spoilt, lambda rows: rows * 1.01)):
        wrong, right = reforward(
            copied(small_store, tmp_path / str(n), dtype, change), random_lm, 30
        )
        assert not wrong.agrees
        assert wrong.error == pytest.approx(0.01, rel=0.3)
        assert right.agrees


def test_another_model_is_refused(small_store, tiny_lm):
    with pytest.raises(UsageError, match="other weights than tiny has"):
        reforward(small_store, tiny_lm, 1)


def test_arrays_have_no_model_to_run(tmp_path, random_lm, capsys):
    path = write_arrays(tmp_path / "s", {"mine": np.ones((4, 8), dtype=np.float32)})
    with pytest.raises(UsageError, match="made from arrays"):
        reforward(ActivationStore(path), random_lm, 1)
    assert main(["verify", str(path), "--reforward", "3"]) == 2
    assert "made from arrays" in capsys.readouterr().err


def test_the_command_says_what_agrees_and_exits_with_1_where_it_does_not(
    small_store, tmp_path, capsys
):
    arguments = ["--reforward", "10", "--device", "cpu"]
    assert main(["verify", str(small_store.path), *arguments]) == 0
    out = capsys.readouterr().out
    assert f"{HOOK}: " in out
    assert out.splitlines()[-2] == "whole"
    bad = copied(small_store, tmp_path / "s", change=WRONG["another scale"])
    assert main(["verify", str(bad.path), *arguments]) == 1
    assert "DIFFERS" in capsys.readouterr().out
