"""Rows in the store are the model's activations at the tokens beside them."""

import errno
import os

import numpy as np
import pytest
import torch

from saelab.activations.corpus import PADDING, load_corpus
from saelab.activations.harvest import HarvestOptions, harvest, model_input, plan
from saelab.activations.parallel import WRITERS
from saelab.activations.space import unit_memory
from saelab.config import UsageError

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]


@pytest.fixture
def corpus(random_lm, text_file):
    return load_corpus(str(text_file), random_lm, context_length=8)


def test_every_row_is_the_models_activation_at_its_token(random_lm, small_store):
    columns = small_store.tokens(0)
    fresh = random_lm.capture(model_input(columns.contexts), HOOKS)
    for hook in HOOKS:
        stored = small_store.site(hook).rows(0, columns.n_rows)
        expected = fresh[hook][columns.context, columns.position]
        torch.testing.assert_close(stored, expected)
    assert np.array_equal(columns.token, columns.contexts[columns.context, columns.position])


def test_special_tokens_and_padding_have_no_row_and_are_counted(random_lm, small_store):
    columns = small_store.tokens(0)
    special = random_lm.info.special_token_ids
    assert not np.isin(columns.token, [PADDING, *special]).any()
    contexts = columns.contexts
    assert columns.excluded["special"] == np.isin(contexts, special).sum()
    assert columns.excluded["padding"] == (contexts == PADDING).sum()
    assert columns.n_rows == contexts.size - sum(columns.excluded.values())


def test_at_least_the_tokens_asked_for_are_there(small_store):
    assert small_store.n_rows >= 400
    assert small_store.complete


def test_a_gpu_runs_more_short_contexts_at_once_unless_told():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for options, device, length, expected in (
        (HarvestOptions(1), gpu, 128, 256),
        (HarvestOptions(1), gpu, 4096, 32),
        (HarvestOptions(1), cpu, 128, 32),
        (HarvestOptions(1, gradients=True), gpu, 128, 32),
        (HarvestOptions(1, batch_size=7), gpu, 128, 7),
    ):
        assert options.contexts_at_once(device, length) == expected


def test_batch_size_does_not_change_the_content(random_lm, corpus, tmp_path):
    stores = [
        harvest(
            random_lm,
            HOOKS[:1],
            corpus,
            out=tmp_path / str(size),
            options=HarvestOptions(n_tokens=100, dtype="float32", batch_size=size),
        )
        for size in (3, 100)
    ]
    first, second = (store.site(HOOKS[0]).rows(0, store.n_rows) for store in stores)
    torch.testing.assert_close(first, second)
    assert stores[0].manifest.content_digest == stores[1].manifest.content_digest


def test_harvesting_again_finds_everything_done(random_lm, corpus, tmp_path, monkeypatch):
    options = HarvestOptions(n_tokens=100)
    harvest(random_lm, HOOKS, corpus, out=tmp_path / "s", options=options)
    widths = {hook: random_lm.width(hook) for hook in HOOKS}
    monkeypatch.setattr(random_lm, "width", widths.__getitem__)
    monkeypatch.setattr(random_lm, "capture", lambda *_: pytest.fail("a forward pass ran"))
    harvest(random_lm, HOOKS, corpus, out=tmp_path / "s", options=options)


def test_other_arguments_on_the_same_store_are_refused_by_name(random_lm, corpus, tmp_path):
    harvest(random_lm, HOOKS, corpus, out=tmp_path / "s", options=HarvestOptions(n_tokens=100))
    with pytest.raises(UsageError, match="dtype"):
        harvest(
            random_lm,
            HOOKS,
            corpus,
            out=tmp_path / "s",
            options=HarvestOptions(n_tokens=100, dtype="float16"),
        )


def test_a_store_of_another_model_is_refused_by_its_digest(random_lm, corpus, tmp_path):
    from saelab.lm.bridge import BridgeLanguageModel

    harvest(random_lm, HOOKS, corpus, out=tmp_path / "s", options=HarvestOptions(n_tokens=100))
    other = random_lm.info.model_copy(update={"weights_digest": "0" * 64})
    impostor = BridgeLanguageModel(random_lm._bridge, other)
    with pytest.raises(UsageError, match=r"model\.weights_digest"):
        harvest(impostor, HOOKS, corpus, out=tmp_path / "s", options=HarvestOptions(n_tokens=100))


@pytest.mark.parametrize(
    ("hooks", "n_tokens", "message"),
    [
        (["blocks.0.hook_resid_pst"], 10, "nearest are blocks.0.hook_resid_post"),
        (HOOKS[:1] * 2, 10, "Name each site once"),
        ([], 10, "at least one"),
        (HOOKS, 0, "at least one token"),
        (HOOKS, 10**6, "lower --n-tokens"),
    ],
)
def test_bad_requests_write_nothing(random_lm, corpus, tmp_path, hooks, n_tokens, message):
    with pytest.raises(UsageError, match=message):
        harvest(
            random_lm, hooks, corpus, out=tmp_path / "s", options=HarvestOptions(n_tokens=n_tokens)
        )
    assert not (tmp_path / "s").exists()


def test_gradients_are_stored_beside_the_activations_at_the_same_rows(random_lm, corpus, tmp_path):
    options = HarvestOptions(n_tokens=100, dtype="float32", batch_size=5, gradients=True)
    store = harvest(random_lm, HOOKS, corpus, out=tmp_path / "s", options=options)
    assert store.sites == (*HOOKS, *(f"{hook}.gradient" for hook in HOOKS))
    columns = store.tokens(0)
    real = torch.from_numpy(columns.contexts != PADDING)
    fresh = random_lm.gradients(model_input(columns.contexts), HOOKS, real)
    for part, kind in zip(fresh, ("", ".gradient"), strict=True):
        for hook in HOOKS:
            stored = store.site(hook + kind).rows(0, columns.n_rows)
            torch.testing.assert_close(stored, part[hook][columns.context, columns.position])


def test_bfloat16_stores_gradients_of_every_size_to_its_own_rounding(random_lm, corpus, tmp_path):
    exact, stored = (
        harvest(
            random_lm,
            HOOKS[1:],
            corpus,
            out=tmp_path / dtype,
            options=HarvestOptions(n_tokens=100, dtype=dtype, gradients=True),
        )
        .site(f"{HOOKS[1]}.gradient")
        .rows(0, 100)
        for dtype in ("float32", "bfloat16")
    )
    torch.testing.assert_close(stored, exact, rtol=2**-8, atol=0)


def test_gradients_in_float16_are_refused(random_lm, corpus, tmp_path):
    options = HarvestOptions(n_tokens=100, dtype="float16", gradients=True)
    with pytest.raises(UsageError, match="as bfloat16"):
        harvest(random_lm, HOOKS, corpus, out=tmp_path / "s", options=options)


def test_an_error_of_the_disk_ends_the_harvest(random_lm, corpus, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        harvest(random_lm, HOOKS, corpus, out=tmp_path / "s", options=HarvestOptions(n_tokens=100))
    monkeypatch.undo()
    options = HarvestOptions(n_tokens=100)
    assert harvest(random_lm, HOOKS, corpus, out=tmp_path / "s", options=options).complete


def test_units_depend_only_on_what_is_stored(random_lm, corpus):
    plans = [
        plan(random_lm, HOOKS, corpus, HarvestOptions(n_tokens=100, batch_size=size))
        for size in (1, 64)
    ]
    assert plans[0].contexts_per_unit == plans[1].contexts_per_unit == 512


def test_a_unit_never_takes_more_than_its_bound(random_lm, corpus, monkeypatch):
    monkeypatch.setattr("saelab.activations.harvest.UNIT_BYTES", 10_000)
    manifest = plan(random_lm, HOOKS, corpus, HarvestOptions(n_tokens=400, dtype="float32"))
    assert manifest.contexts_per_unit * 8 * 2 * 16 * 4 <= 10_000 < unit_memory(manifest)
    assert unit_memory(manifest) <= (2 * WRITERS + 1) * 10_000
