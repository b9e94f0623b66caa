"""Rows in the store are the model's activations at the tokens beside them."""

import numpy as np
import pytest
import torch
from saelab.activations.corpus import PADDING, load_corpus
from saelab.activations.harvest import HarvestOptions, harvest, model_input
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
    monkeypatch.setattr(random_lm, "capture", None)
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
