"""The suite's type checker still refuses what it is there to refuse."""

from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError, _import_hook
from shape_checks import CALLS, begin_test, checked, jaxtyped
from torch import Tensor

strict = jaxtyped(typechecker=checked)


@strict
def doubled(x: Float[Tensor, "batch d_in"], *, twice: bool = True) -> Float[Tensor, "batch d_in"]:
    return (torch.cat([x, x]) if len(x) == 3 else 2 * x) if twice else x


@strict
@dataclass(frozen=True)
class Pair:
    a: Float[Tensor, " n"]
    b: Float[Tensor, " n"]


def test_what_fits_is_let_through_again_and_again():
    for n in (1, 2, 1):
        assert doubled(torch.ones(n, 2)).shape == (n, 2)
    assert Pair(torch.ones(2), torch.ones(2)).a.shape == (2,)


@pytest.mark.parametrize("x", [torch.ones(2), torch.ones(2, 2, dtype=torch.int64), [[1.0]]])
def test_a_parameter_of_another_shape_or_type_is_refused(x):
    with pytest.raises(TypeCheckError, match="the parameters of"):
        doubled(x)


def test_a_keyword_of_another_type_is_refused():
    with pytest.raises(TypeCheckError, match="the parameters of"):
        doubled(torch.ones(2, 2), twice=1)


def test_a_result_that_contradicts_the_axes_of_the_parameters_is_refused():
    with pytest.raises(TypeCheckError, match="the return value of"):
        doubled(torch.ones(3, 2))


def test_fields_of_a_dataclass_must_agree_with_each_other():
    with pytest.raises(TypeCheckError):
        Pair(torch.ones(2), torch.ones(3))


def test_in_each_test_the_first_calls_are_checked():
    for _ in range(CALLS):
        doubled(torch.ones(1, 2))
    assert doubled(torch.ones(3, 2)).shape == (6, 2)
    begin_test()
    with pytest.raises(TypeCheckError):
        doubled(torch.ones(3, 2))


def inner(n: int):
    @strict
    def repeated(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        return x.repeat(n, 1)

    return repeated


def test_a_function_in_a_function_is_decorated_once_and_each_is_checked(monkeypatch):
    decorated = []
    monkeypatch.setattr(
        "shape_checks.beartype", lambda f: (decorated.append(f.__name__), beartype(f))[1]
    )
    for _ in range(3):
        assert inner(1)(torch.ones(1, 2)).shape == (1, 2)
    assert decorated == ["repeated", "repeated"]
    with pytest.raises(TypeCheckError, match="the return value of"):
        inner(2)(torch.ones(1, 2))
    with pytest.raises(TypeCheckError, match="the parameters of"):
        inner(1)(torch.ones(2))


def test_the_package_is_checked():
    from saelab.types import ActivationBatch

    with pytest.raises(TypeCheckError):
        ActivationBatch(torch.ones(2))


@pytest.mark.unchecked
def test_a_marked_test_is_not_checked():
    assert doubled(torch.ones(3, 2)).shape == (6, 2)


def test_only_the_packages_modules_have_a_cache_of_their_own():
    from saelab import types

    cache = _import_hook._optimized_cache_from_source
    assert "jaxtyping" in cache("checks", types.__file__)
    assert cache("checks", torch.__file__) == cache_from_source(torch.__file__)


def test_what_is_run_first_exists():
    from conftest import LONGEST

    root = Path(__file__).parents[1]
    assert all((root / path).exists() for path in LONGEST)
