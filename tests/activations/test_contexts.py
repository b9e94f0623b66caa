"""Whole contexts, each once an epoch, in an order that can be continued exactly."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from activations.store_cases import make_manifest, overwrite, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.activations.arrays import write_arrays
from saelab.activations.columns import Columns
from saelab.activations.contexts import ContextBatches, TokenBatch
from saelab.activations.corpus import PADDING, load_corpus
from saelab.activations.format import DamagedStoreError, SiteSpec, tokens_path
from saelab.activations.forward import row_mask
from saelab.activations.store import ActivationStore
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError

LENGTH, PER_UNIT, N_CONTEXTS = 6, 4, 22
POOLS = st.sampled_from([1, PER_UNIT * LENGTH, 9 * LENGTH, N_CONTEXTS * LENGTH, 1000])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """22 contexts in 6 units, the last of 2, with rows and padding at random places."""
    rng = np.random.default_rng(0)
    manifest = make_manifest(
        sites=(SiteSpec(hook="a", d_in=1),),
        label_names=(),
        n_contexts=N_CONTEXTS,
        contexts_per_unit=PER_UNIT,
        context_length=LENGTH,
    )
    path = tmp_path_factory.mktemp("contexts") / "s"
    with StoreWriter.create(path, manifest) as writer:
        for unit in writer.missing_units():
            columns = random_columns(np.asarray(manifest.unit_contexts(unit)), rng)
            writer.write_unit(unit, {"a": torch.zeros(columns.n_rows, 1)}, columns)
    return ActivationStore(path)


def random_columns(contexts, rng):
    """Token = 100 * context + position; short contexts end in padding, some positions are bare."""
    tokens = 100 * contexts[:, None] + np.arange(LENGTH)
    padding = np.arange(LENGTH) >= rng.integers(3, LENGTH + 1, size=(len(contexts), 1))
    tokens[padding] = PADDING
    bare = (rng.random(tokens.shape) < 0.3) & ~padding
    context, position = np.nonzero(~bare & ~padding)
    return Columns(
        token=tokens[context, position],
        position=position,
        context=contexts[context],
        document=contexts[context],
        contexts=tokens,
        excluded={"special": int(bare.sum()), "padding": int(padding.sum())},
    )


def batches_of(store, contexts_per_batch=3, **options: Any):
    values: dict[str, Any] = {"pool_tokens": 9 * LENGTH} | options
    return ContextBatches(store, contexts_per_batch, **values)


def served(batches, n):
    """The next `n` contexts, as the indices that their first tokens tell."""
    n_batches = -(-n // batches.contexts_per_batch)
    first = torch.cat([next(batches).tokens[:, 0] for _ in range(n_batches)])
    return (first[:n] // 100).tolist()


def equal(left: TokenBatch, right: TokenBatch) -> bool:
    return torch.equal(left.tokens, right.tokens) and torch.equal(left.mask, right.mask)


@given(
    st.integers(1, 3 * N_CONTEXTS),
    POOLS,
    st.integers(0, 2**63 - 1),
    st.sets(st.integers(0, 5), max_size=5),
)
@settings(max_examples=15)
def test_every_epoch_serves_every_context_of_the_units_once(store, size, pool, seed, skip):
    left = [c for c in range(N_CONTEXTS) if c // PER_UNIT not in skip]
    batches = batches_of(store, size, pool_tokens=pool, seed=seed, skip_units=skip)
    order = served(batches, 2 * len(left))
    assert sorted(order[: len(left)]) == left
    assert sorted(order[len(left) :]) == left


def test_a_batch_holds_what_the_store_holds_of_its_contexts(store):
    """Row for row against the columns: the mask is the rows, the tokens are the unit's contexts."""
    rows, tokens = set(), {}
    for unit in store.units:
        columns = store.tokens(unit)
        rows |= set(zip(columns.context.tolist(), columns.position.tolist(), strict=True))
        tokens |= dict(
            zip(store.manifest.unit_contexts(unit), columns.contexts.tolist(), strict=True)
        )
    batches, found = batches_of(store, 5), set()
    for _ in range(-(-N_CONTEXTS // 5)):
        batch = next(batches)
        assert batch.tokens.shape == batch.mask.shape == (5, LENGTH)
        assert batch.tokens.dtype == torch.int64
        for line, mask in zip(batch.tokens.tolist(), batch.mask, strict=True):
            context = line[0] // 100
            assert line == [0 if token == PADDING else token for token in tokens[context]]
            found |= {(context, position) for position in mask.nonzero()[:, 0].tolist()}
    assert found == rows
    assert any(PADDING in line for line in tokens.values())


def test_contexts_of_a_harvest_are_the_corpus_with_padding_replaced(
    small_store, random_lm, tmp_path
):
    text = small_store.path.parent / "text.txt"
    corpus = load_corpus(str(text), random_lm, context_length=small_store.manifest.context_length)
    expected = corpus.read(0, small_store.manifest.n_contexts).tokens
    wanted = zip(
        np.where(expected == PADDING, 0, expected).tolist(),
        row_mask(random_lm, expected).tolist(),
        strict=True,
    )
    batch = next(ContextBatches(small_store, small_store.manifest.n_contexts))
    given = zip(batch.tokens.tolist(), batch.mask.tolist(), strict=True)
    assert sorted(given) == sorted(wanted)
    assert int(batch.mask.sum()) == small_store.n_rows
    assert random_lm.run(batch.tokens).logits.isfinite().all()


def test_the_order_is_fixed_by_the_seed_and_differs_by_seed_and_epoch(store):
    first = served(batches_of(store, seed=3), 2 * N_CONTEXTS)
    assert first == served(batches_of(store, seed=3), 2 * N_CONTEXTS)
    assert first != served(batches_of(store, seed=4), 2 * N_CONTEXTS)
    assert first[:N_CONTEXTS] != first[N_CONTEXTS:]


def test_the_order_does_not_depend_on_the_batch_size(store):
    assert served(batches_of(store, 1), 50) == served(batches_of(store, 13), 50)


def test_a_group_mixes_units_and_its_contexts_are_not_in_the_stores_order(store):
    order = served(batches_of(store, pool_tokens=N_CONTEXTS * LENGTH), N_CONTEXTS)
    units = np.asarray(order) // PER_UNIT
    assert (np.diff(units) != 0).sum() > 10
    of_one_unit = [[c for c in order if c // PER_UNIT == unit] for unit in range(5)]
    assert any(contexts != sorted(contexts) for contexts in of_one_unit)


def test_no_more_units_are_read_at_once_than_the_pool_has_room_for(store, monkeypatch):
    read = []
    tokens = store.tokens
    monkeypatch.setattr(store, "tokens", lambda unit: read.append(unit) or tokens(unit))
    batches = batches_of(store, 1, pool_tokens=PER_UNIT * LENGTH)
    at_once = []
    for _ in range(N_CONTEXTS):
        before = len(read)
        next(batches)
        at_once.append(len(read) - before)
    assert max(at_once) <= 2
    assert sorted(read) == list(store.units)


@given(
    st.integers(1, 30),
    st.integers(0, 4),
    POOLS,
    st.sets(st.integers(0, 5), max_size=3),
)
@settings(max_examples=12)
def test_resuming_from_any_batch_is_bit_identical(store, size, done, pool, skip):
    options = {"pool_tokens": pool, "seed": 5, "skip_units": skip}
    batches = batches_of(store, size, **options)
    for _ in range(done):
        next(batches)
    state = json.loads(json.dumps(batches.state_dict()))
    assert state["contexts_served"] == batches.contexts_served == size * done
    resumed = batches_of(store, size, **options)
    resumed.load_state_dict(state)
    for _ in range(2):
        assert equal(next(batches), next(resumed))


def test_loading_an_earlier_state_into_running_batches_goes_back(store):
    batches = batches_of(store)
    state = batches.state_dict()
    first = served(batches, 2 * N_CONTEXTS)
    batches.load_state_dict(state)
    assert served(batches, 2 * N_CONTEXTS) == first


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("seed", {"seed": 1}),
        ("pool_tokens", {"pool_tokens": 7}),
        ("contexts_per_batch", {"contexts_per_batch": 4}),
        ("skip_units", {"skip_units": [2]}),
    ],
)
def test_a_state_of_another_order_is_refused_and_the_reason_named(store, field, change):
    state = batches_of(store).state_dict()
    with pytest.raises(UsageError, match=f"Cannot resume the data order: {field} was"):
        batches_of(store, **change).load_state_dict(state)


def test_how_the_units_to_skip_are_listed_does_not_matter(store):
    state = batches_of(store, skip_units=[4, 1]).state_dict()
    batches_of(store, skip_units=(1, 4, 4)).load_state_dict(state)


def test_a_state_of_a_store_that_grew_is_refused(store_path):
    whole = ContextBatches(ActivationStore(store_path), 2).state_dict()
    tokens_path(store_path, 2).unlink()
    smaller = ContextBatches(ActivationStore(store_path), 2)
    with pytest.raises(UsageError, match="store was"):
        smaller.load_state_dict(whole)


def test_only_committed_units_are_served(store_path):
    tokens_path(store_path, 1).unlink()
    batches = ContextBatches(ActivationStore(store_path), 6)
    assert sorted(served(batches, 6)) == [0, 1, 2, 3, 8, 9]


def test_a_store_of_arrays_is_refused_because_it_has_no_text(tmp_path):
    store = ActivationStore(write_arrays(tmp_path / "s", {"a": torch.zeros(8, 2)}))
    with pytest.raises(UsageError, match="without a language model or text"):
        ContextBatches(store, 2)


def test_sizes_below_one_are_refused(store):
    for options in ({"contexts_per_batch": 0}, {"pool_tokens": 0}):
        with pytest.raises(UsageError, match="must be at least 1"):
            batches_of(store, **options)


def test_units_can_only_be_skipped_if_they_exist_and_some_are_left(store):
    with pytest.raises(UsageError, match="no committed unit 6 to skip"):
        batches_of(store, skip_units=[6])
    with pytest.raises(UsageError, match="6 committed units, of which 6 are skipped"):
        batches_of(store, skip_units=range(6))


def test_a_store_without_a_committed_unit_has_nothing_to_serve(tmp_path):
    path = write_store(tmp_path / "s", make_manifest())
    for unit in range(3):
        tokens_path(path, unit).unlink()
    with pytest.raises(UsageError, match="0 committed units"):
        ContextBatches(ActivationStore(path), 2)


def test_damage_reaches_the_one_who_asks_for_batches(store_path):
    store = ActivationStore(store_path)
    file = tokens_path(store_path, 1)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(file, bytes(data))
    with pytest.raises(DamagedStoreError, match=r"tokens/000001\.h5"):
        served(ContextBatches(store, 2), 10)
