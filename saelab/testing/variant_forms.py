"""The SAEs and rows of the tests in `saelab.testing.variant_contract`."""

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae.base import AbstractSAEConfig
from saelab.sae.variants import SAE_CONFIG, variant, variants

D_IN, D_SAE, K = 12, 40, 4
FORMS: list[dict[str, Any]] = [{"variant": name} for name in variants()]
"""Options of the SAEs that are tested, beside the width and k."""
PLANTED: dict[str, dict[str, Any]] = {
    "matryoshka": {"fractions": (0.5, 0.5)},
    "gated": {"l1_coefficient": 0.5},  # As many latents fire then as there are atoms in a row.
}
"""Options by variant that an SAE of 32 latents needs to find two planted atoms a row."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test for every form of the module that imports them."""
    if "sae" in metafunc.fixturenames:
        forms: list[dict[str, Any]] = vars(metafunc.module)["FORMS"]
        ids = ["-".join(map(str, form.values())) for form in forms]
        metafunc.parametrize("sae", forms, ids=ids, indirect=True)


def rows(n: int = 64, seed: int = 1) -> Float[Tensor, "n d_in"]:
    """Rows of noise."""
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


def config_of(form: dict[str, Any], **changes: object) -> AbstractSAEConfig:
    """The options of a form, small."""
    sized: dict[str, Any] = {"d_sae": D_SAE}
    sized |= {"k": K} if "k" in variant(form["variant"]).model_fields else {}
    return SAE_CONFIG.validate_python(sized | form | changes)
