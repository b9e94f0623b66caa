"""What the processes of an SAE tell each other in a fused step."""

import pytest
import torch
from kernels.triton_device import DEVICE
from rest import rest
from training.fused_forms import BATCH, D_IN, D_OUT, D_SAE, FORMS, SMALL, STEPS, V
from typing_extensions import override

from saelab.kernels.exchange import LatentExchange, received
from saelab.sae.context import LossContext
from saelab.sae.spread import keep_shard
from saelab.sae.transcoder import make_transcoder
from saelab.training import fused
from saelab.training.fused import FusedOptions, FusedStep


class Counted(LatentExchange):
    """An exchange with nobody, which notes what it would receive."""

    def __init__(self, shard):
        super().__init__(shard)
        self.received = []

    @override
    def sum(self, part):
        self.begin_sum(part)
        return part

    @override
    def begin_sum(self, part):
        n = part.numel() * part.element_size()
        self.received.append(2 * (self.shard.size - 1) * n // self.shard.size)

    @override
    def end_first(self):
        pass

    @override
    def begin_gather(self, own):
        return self.gather(own)

    @override
    def gather(self, own):
        self.received.append((self.shard.size - 1) * own.numel() * own.element_size())
        return own.expand(self.shard.size, *own.shape).contiguous()

    @override
    def most(self, n):
        return int(n)


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("multi", torch.bfloat16),
        ("nested", torch.bfloat16),
        ("jump", torch.float32),
        *rest(*((form, torch.float32) for form in ("wide", "batch", "transcoder"))),
    ],
)
def test_a_step_receives_as_many_bytes_as_the_law_says(form, precision, monkeypatch):
    monkeypatch.setattr(fused, "LatentExchange", Counted)
    cls, given = FORMS[form]
    sae = cls(d_sae=D_SAE, **(given | {"aux_coefficient": 0})).build(D_IN)
    if form == "transcoder":
        make_transcoder(sae, D_OUT, skip=True)
    keep_shard(sae, 1, 4)
    step = FusedStep(sae.to(DEVICE), FusedOptions(BATCH, V, precision, launch=SMALL))
    step.prepare(LossContext(V, step=0, n_steps=STEPS))
    step(torch.zeros(BATCH, D_IN, device=DEVICE), target=torch.ones(BATCH, sae.d_out))
    exchange = step.graphs.step.exchange
    assert isinstance(exchange, Counted)
    half = precision == torch.bfloat16
    law = received(step.rules.sae, sae.shard, BATCH, D_IN, sae.d_out, half=half)
    assert exchange.received == law
