"""What a training announces before it starts: its memory and its time."""

import time

import pytest
import torch

from saelab.sae.variants import sized
from saelab.training.config import TrainConfig
from saelab.training.fused_steps import FusedSteps
from saelab.training.plan import kernel_seconds, training_plan
from saelab.training.source import Source
from saelab.training.untrained import untrained_sae
from saelab.types import ActivationBatch

D_SAE, BATCH, PRE_ACTS = 2**15, 128, 2


def test_kernels_and_shared_latents_take_less(small_store, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def announced(step, shards=1, moments="float32"):
        values = {"sae": sized("topk", D_SAE, 8), "activations": small_store.path, "n_tokens": 100}
        values |= {"site": small_store.sites[0], "batch_size": BATCH, "step": step}
        config = TrainConfig.model_validate({**values, "precision": "bfloat16", "moments": moments})
        source = Source([config], torch.device("cpu"))
        return training_plan(source, [config], shards).memory, 2 * source.site.d_in

    (fused, width), (autograd, _) = announced("fused"), announced("autograd")
    # No gradient but a bfloat16 copy of the weights; pre-activations once, in bfloat16.
    assert autograd - fused == D_SAE * (2 * width + (16 - PRE_ACTS) * BATCH)
    assert fused - announced("fused", moments="bfloat16")[0] == D_SAE * width * 4
    half, _ = announced("autograd", 2)
    assert autograd - half == D_SAE // 2 * (16 * width + 16 * BATCH)


def test_a_step_of_kernels_is_timed_on_whole_batches(small_store, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    values = {"sae": sized("topk", 12, 2), "activations": small_store.path, "n_tokens": 100}
    values |= {"site": small_store.sites[0], "batch_size": 5, "step": "fused"}
    config, clock, did = TrainConfig.model_validate(values), [0.0], []

    def step(steps, batch, objective, context, *, lr, scale):
        did.append((type(steps), batch.x.shape, lr))
        clock[0] += 10 / len(did)  # The first steps take longer.

    monkeypatch.setattr(FusedSteps, "optimizer_step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    seconds = kernel_seconds(config, untrained_sae(config, 8, 8), ActivationBatch(torch.ones(5, 8)))
    # Without a graph, recorded, replayed; the last one counts.
    assert len(did) >= 3
    assert set(did) == {(FusedSteps, (5, 8), 0.0)}
    assert seconds == pytest.approx(10 / len(did))
