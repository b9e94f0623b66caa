"""Small SAEs of every kind that several processes train by the fused step."""

from typing import Any

import torch

from saelab.kernels.triton.step.rules import Launch
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.sae.matryoshka import MatryoshkaConfig
from saelab.sae.topk import TopKConfig
from saelab.sae.transcoder import make_transcoder

# Two chunks of columns, the second not full; processes that hold different numbers of latents.
D_IN, D_OUT, D_SAE, BATCH, V, STEPS = 20, 10, 13, 4, 5.0, 2
SMALL = Launch(columns=16, pairs=2, latents=3, slice=3, programs=1)
AUX = {"aux_coefficient": 0.5, "aux_k": 3}
FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "topk": (TopKConfig, {"k": 3, "aux_coefficient": 0}),
    "wide": (TopKConfig, {"k": 9, "aux_coefficient": 0}),
    "revived": (TopKConfig, {"k": 3, **AUX}),
    "multi": (TopKConfig, {"k": 2, "multi_k_coefficient": 0.125, "aux_coefficient": 0}),
    "abs": (AbsTopKConfig, {"k": 3, **AUX}),
    "batch": (BatchTopKConfig, {"k": 2.75, **AUX}),
    "batch-abs": (AbsTopKConfig, {"k": 3, "selection": "batch", "subtract_b_dec": False}),
    "nested": (MatryoshkaConfig, {"k": 3, "fractions": (0.1, 0.3, 0.6), **AUX}),
    "jump": (JumpReLUConfig, {"k": 3, "bandwidth": 0.5, **AUX}),
    "dense": (JumpReLUConfig, {"k": None, "l0_coefficient": 0.01, "bandwidth": 0.5, **AUX}),
    "transcoder": (TopKConfig, {"k": 3, **AUX}),
}


def build(form):
    """The SAE of this name, always the same."""
    cls, given = FORMS[form]
    sae = cls(d_sae=D_SAE, **given).build(D_IN, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    if form == "transcoder":
        make_transcoder(sae, D_OUT, skip=True, generator=generator)
    with torch.no_grad():
        # Else a row's only code would have a residual at right angles, and a gradient of noise.
        sae.b_enc.normal_(std=0.1, generator=generator)
        if form in ("jump", "dense"):
            sae.threshold.uniform_(0, 1.5, generator=generator)
    return sae
