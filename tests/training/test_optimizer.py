"""Adam's options mean the same by autograd and by kernels, and what AdamW's paper says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from kernels.triton_device import DEVICE
from rest import rest

from saelab.config import UsageError
from saelab.sae.context import LossContext
from saelab.sae.variants import SAE_CONFIG
from saelab.training import fused_graphs
from saelab.training.config import TrainConfig
from saelab.training.fused_steps import FusedSteps
from saelab.training.objectives import Local
from saelab.training.steps import AutogradSteps
from saelab.types import ActivationBatch

D_IN, D_SAE, BATCH, STEPS, LR, V = 6, 5, 4, 3, 1e-2, 6.0
CONTEXT = LossContext(V, n_steps=STEPS)
OPTIONS = {
    "betas": {"adam_beta1": 0.0, "adam_beta2": 0.99},
    "eps": {"adam_eps": 1e-2},
    "decay": {"weight_decay": 3.0},
    "all": {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_eps": 1e-3, "weight_decay": 3.0},
}


def config_of(variant, **options) -> TrainConfig:
    sae = SAE_CONFIG.validate_python({"variant": variant, "d_sae": D_SAE, "k": 2})
    values: dict[str, Any] = {
        "n_tokens": STEPS * BATCH,
        "batch_size": BATCH,
        "clip_norm": 0.5,
        **options,
    }
    return TrainConfig(sae=sae, activations=Path(), site="", **values)


def batches():
    return torch.randn(STEPS, BATCH, D_IN, generator=torch.Generator().manual_seed(3)).to(DEVICE)


def build(config, silent=False):
    sae = config.sae.build(D_IN, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        if silent:
            sae.b_enc[2] = -50
    return sae.to(DEVICE)


def trained(way, config, sae):
    """The SAE after the steps, some of which are longer than others."""
    more = (V,) if way is FusedSteps else ()
    steps = way(config, sae, torch.device(DEVICE), *more)
    for number, x in enumerate(batches()):
        rate = LR * (number + 1)
        steps.optimizer_step(ActivationBatch(x), Local(), CONTEXT, lr=rate, scale=1.0)
    return steps.trained()


@pytest.fixture(autouse=True)
def _by_kernels_alone(monkeypatch):
    monkeypatch.setattr(fused_graphs, "LEAST_ROOM", 32)


@pytest.mark.parametrize("variant", ["topk", "jumprelu"])
@pytest.mark.parametrize("options", ["all", *rest("betas", "eps", "decay")])
def test_kernels_move_weights_as_torch_does(variant, options):
    config = config_of(variant, **OPTIONS[options])
    ours, theirs = (trained(way, config, build(config)) for way in (FusedSteps, AutogradSteps))
    plain = config_of(variant)
    usual = trained(AutogradSteps, plain, build(plain))
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name), parameter, atol=3e-6, rtol=1e-4, msg=lambda m, n=name: n + m
        )
    after = theirs.state_dict()
    assert max(float((usual.state_dict()[n] - after[n]).abs().max()) for n in after) > 1e-3


@pytest.mark.parametrize("way", [FusedSteps, AutogradSteps])
@pytest.mark.parametrize("variant", ["topk", "jumprelu"])
def test_decay_takes_lr_times_its_share_off_encoder_rows_without_a_gradient(variant, way):
    config = config_of(variant, weight_decay=3.0)
    before = build(config, silent=True).state_dict()
    after = trained(way, config, build(config, silent=True)).state_dict()
    share = 1.0
    for number in range(STEPS):
        share *= 1 - LR * (number + 1) * 3.0
    torch.testing.assert_close(after["W_enc"][:, 2], share * before["W_enc"][:, 2])
    torch.testing.assert_close(after["W_dec"][2], before["W_dec"][2])
    assert after["b_enc"][2] == before["b_enc"][2]


def test_a_decay_that_would_turn_weights_round_is_refused_with_the_limit():
    config_of("topk", weight_decay=900.0, lr=1e-3).check()
    with pytest.raises(UsageError, match=r"weight_decay=1000\.0 .* below 1000"):
        config_of("topk", weight_decay=1000.0, lr=1e-3).check()
