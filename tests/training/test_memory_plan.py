"""The memory that a training announces."""

import torch

from saelab.sae.variants import sized
from saelab.training.config import TrainConfig
from saelab.training.plan import training_plan
from saelab.training.source import Source

D_SAE, BATCH, PRE_ACTS = 2**15, 128, 2


def test_kernels_and_shared_latents_take_less(small_store, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def announced(step, shards=1):
        values = {"sae": sized("topk", D_SAE, 8), "activations": small_store.path, "n_tokens": 100}
        values |= {"site": small_store.sites[0], "batch_size": BATCH, "step": step}
        config = TrainConfig.model_validate({**values, "precision": "bfloat16"})
        source = Source([config], torch.device("cpu"))
        return training_plan(source, [config], shards).memory, 2 * source.site.d_in

    (fused, width), (autograd, _) = announced("fused"), announced("autograd")
    # No gradient but a bfloat16 copy of the weights; pre-activations once, in bfloat16.
    assert autograd - fused == D_SAE * (2 * width + (16 - PRE_ACTS) * BATCH)
    half, _ = announced("autograd", 2)
    assert autograd - half == D_SAE // 2 * (16 * width + 16 * BATCH)
