"""The weights of a loaded model for attribution: per head, in float64 by default."""

from typing import Any

import torch

from saelab.config import UsageError
from saelab.lm.linear.gpt2 import gpt2
from saelab.lm.linear.gpt_neox import gpt_neox
from saelab.lm.linear.llama import LLAMA_LIKE, llama_like
from saelab.lm.linear.parameters import Parameters
from saelab.lm.linear.paths import ModelWeights
from saelab.lm.protocol import ActivationSource

READERS = {"gpt2": gpt2, "gpt_neox": gpt_neox, **dict.fromkeys(LLAMA_LIKE, llama_like)}
"""The reader of each `model_type` of transformers."""


def model_weights(
    lm: ActivationSource, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> ModelWeights:
    """The weights of `lm` from either back end, copied to `dtype`.

    Raises:
        UsageError: the architecture is not known to be linear between its MLPs.
    """
    module = _module(lm)
    kind = module.config.model_type
    if kind not in READERS:
        raise UsageError(
            f"{lm.info.name} is of type {kind}, which cannot be linearised here; attribution "
            f"knows {', '.join(sorted(READERS))}."
        )
    return READERS[kind](Parameters(module, dtype, device or lm.device), module.config)


def _module(lm: ActivationSource) -> Any:  # noqa: ANN401 - transformers has no common class
    from saelab.lm.hf import HuggingFaceModel

    if isinstance(lm, HuggingFaceModel):
        return lm._model
    # With a bridge, transformer_lens is already imported, so this costs nothing.
    from saelab.lm.bridge import BridgeLanguageModel

    if isinstance(lm, BridgeLanguageModel):
        return lm._bridge.original_model
    raise UsageError(f"The weights of a {type(lm).__name__} cannot be read for attribution.")
