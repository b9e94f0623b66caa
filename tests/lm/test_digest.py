"""The digest of a model's weights is of their values when the hashing began."""

import hashlib
import threading

import pytest
import torch
from torch import nn

from saelab.lm import load
from saelab.lm.load import digested


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
    made.tied = made[0]
    return made.to(torch.bfloat16)


def expected(weights):
    """The digest, of all bytes at once."""
    text = b""
    for name in sorted(weights):
        value = weights[name]
        text += f"{name} {tuple(value.shape)}\n".encode() + value.float().numpy().tobytes()
    return hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("chunk", [1 << 24, 3])
def test_a_model_may_move_while_it_is_hashed(chunk, monkeypatch):
    monkeypatch.setattr(load, "HASH_CHUNK", chunk)
    moved = model()
    with digested(moved) as digest:
        moved.to(torch.float16)
        assert digest() == expected(model().state_dict())
    assert moved[0].weight.dtype == torch.float16


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
        *(torch.int64, torch.bool),
    ],
)
def test_numbers_of_every_type_are_hashed_as_float32(dtype):
    numbers = (4 * torch.randn(2, 3, 5)).to(dtype)
    made = nn.Module()
    made.register_buffer("whole", numbers)
    made.register_buffer("column", numbers[0, :, 0])
    made.register_buffer("same", numbers[0, 0, :1].expand(4))
    made.register_buffer("turned", numbers.movedim(0, 2))
    made.register_buffer("nothing", numbers[:0])
    with digested(made) as digest:
        assert digest() == expected(made.state_dict())


def test_what_cannot_be_hashed_is_told_where_the_digest_is_asked_for():
    with pytest.raises(NotImplementedError, match="meta"), digested(model().to("meta")) as digest:
        digest()


def test_an_error_beside_the_hashing_is_raised_and_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(ValueError, match="mine"), digested(model()):
        raise ValueError("mine")
    assert threading.active_count() == before
