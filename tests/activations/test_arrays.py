"""Arrays of one's own: every form that people have them in, and what is refused."""

import numpy as np
import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.activations.batches import BatchSites, ShuffledBatches
from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.training.config import TrainConfig
from saelab.training.loop import train

X = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)


class Frame:
    """What numpy needs of a data frame."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return X.copy()


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (X.tolist(), X),
        (tuple(map(tuple, X.tolist())), X),
        (Frame(), X),
        (X[::-1], X[::-1]),
        (X[:, ::-2], X[:, ::-2]),
        (np.asfortranarray(X), X),
        (X.astype(">f4"), X),
        (X.astype(">f8"), X),
        (X.astype(np.longdouble), X),
        (X.astype(np.float16), X.astype(np.float16)),
        ((X * 100).astype(np.int64), (X * 100).astype(np.int64)),
        (X > 0, X > 0),
        (torch.tensor(X, requires_grad=True), X),
        (torch.tensor(X).T.contiguous().T, X),
        (torch.tensor(X).bfloat16(), torch.tensor(X).bfloat16().float().numpy()),
        ((torch.tensor(X) * 100).int(), (X * 100).astype(np.int32)),
        (np.full((30, 4), 3.0), np.full((30, 4), 3.0)),
        (X[:1], X[:1]),
    ],
)
def test_rows_come_back_whatever_they_were_given_as(given, rows, tmp_path):
    path = write_arrays(tmp_path / "s", {"x": given}, rows_per_unit=128)
    store = ActivationStore(path)
    found = store.site("x").rows(0, store.n_rows).numpy()[_in_order(store)]
    assert np.array_equal(found, rows.astype(np.float32))


def _in_order(store: ActivationStore) -> np.ndarray:
    return np.argsort(np.concatenate([store.tokens(unit).context for unit in store.units]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (X[:, 0], r"x has shape \[300\], but \[rows, d_in\].*x\[:, None\] makes it so"),
        (X.reshape(3, 100, 16), r"shape \[3, 100, 16\].*reshape\(-1, x.shape\[-1\]\) makes it so"),
        (3.0, r"shape \[\]"),
        (X[:, :0], r"shape \[300, 0\], but \[rows, d_in\] with d_in at least 1"),
        (X[:0], "at least 1; got x: 0"),
        ([[1.0], [1.0, 2.0]], "cannot be made an array of"),
        ([["a"]], "holds <U1 values"),
        (X.astype(object), "holds object values"),
        (X.astype(complex), "holds complex128 values"),
        (np.ma.array(X, mask=X > 0), "masked"),
        (torch.tensor(X).to_sparse(), "sparse"),
        (torch.tensor(X).to(torch.complex64), "complex64 values"),
        (np.where(X > 2, np.nan, X), "values of x are NaN or infinite"),
    ],
)
def test_what_is_no_table_of_real_numbers_is_refused_in_a_sentence(given, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        write_arrays(tmp_path / "s", {"x": given})


def test_no_array_at_all_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no array to store"):
        write_arrays(tmp_path / "s", {})


def test_the_same_call_again_changes_nothing_and_other_values_are_refused(tmp_path):
    path = tmp_path / "s"
    before = write_arrays(path, {"x": X, "y": X}, rows_per_unit=128)
    assert write_arrays(path, {"x": X.tolist(), "y": X}, rows_per_unit=128) == before
    other = X.copy()
    other[200, 3] += 1
    with pytest.raises(UsageError, match="holds other values of y already, from row 128 on"):
        write_arrays(path, {"x": X, "y": other}, rows_per_unit=128)


def gradients_of(store):
    """Whether the store's first batch has the gradients of its own rows."""
    sites = BatchSites("x", grad="x.gradient")
    batch = next(ShuffledBatches(store, sites, 64, seed=3))
    assert batch.grad is not None
    return torch.equal(batch.grad, 2 * batch.x + 1)


def test_gradients_stand_beside_their_rows(tmp_path):
    x = X.round(2)
    path = tmp_path / "s"
    arrays, grads = {"y": X, "x": x}, {"x": 2 * x + 1}
    write_arrays(path, arrays, gradients=grads, rows_per_unit=128)
    store = ActivationStore(path)
    assert store.sites == ("y", "x", "x.gradient")
    assert store.manifest.site("x.gradient").kind == "gradient"
    assert gradients_of(store)
    write_arrays(path, arrays, gradients=grads, rows_per_unit=128)
    with pytest.raises(UsageError, match=r"other values of x.gradient already"):
        write_arrays(path, arrays, gradients={"x": x}, rows_per_unit=128)
    with pytest.raises(UsageError, match="holds another store"):
        write_arrays(path, arrays, rows_per_unit=128)


@pytest.mark.parametrize(
    ("arrays", "gradients", "dtype", "words"),
    [
        ({"x": X}, {"y": X}, "float32", r"gradients of 'y', but no such array; arrays are x"),
        ({"x": X}, {"x": X[:-1]}, "float32", r"shape \[299, 16\], and x has \[300, 16\]"),
        ({"x": X}, {"x": X[:, 1:]}, "float32", r"shape \[300, 15\]"),
        ({"x": X}, {"x": X[:, 0]}, "float32", r"the gradient of x has shape \[300\]"),
        ({"x": X}, {"x": X}, "float16", r"more orders of magnitude than float16"),
        ({"x": X, "x.gradient": X}, {"x": X}, "float32", r"give that array another name"),
        (
            {"x": X},
            {"x": np.full_like(X, np.inf)},
            "float32",
            r"values of x.gradient are NaN or infinite",
        ),
    ],
)
def test_gradients_that_fit_no_rows_are_refused(tmp_path, arrays, gradients, dtype, words):
    with pytest.raises(UsageError, match=words):
        write_arrays(tmp_path / "s", arrays, gradients=gradients, dtype=dtype)


def test_a_gradient_sae_trains_on_arrays(tmp_path):
    """And one without gradients is refused with the remedy."""
    grads = np.zeros_like(X)
    grads[:, 3] = 1.0
    store = write_arrays(tmp_path / "s", {"x": X}, gradients={"x": grads})
    sae = {"variant": "gradient-topk", "d_sae": 16, "k": 1, "beta": 1000.0}
    values = {"sae": sae, "activations": store, "site": "x", "n_tokens": 200, "batch_size": 100}
    config = TrainConfig.model_validate(values)
    assert train(config, out=tmp_path / "run").finished
    plain = write_arrays(tmp_path / "plain", {"x": X})
    other = config.model_copy(update={"activations": plain})
    with pytest.raises(UsageError, match=r"write_arrays\(gradients="):
        train(other, out=tmp_path / "other")
