"""Stores for transport: one with planted features, and one of a model with many documents."""

import json

import pytest
import torch
from analysis.transport.cases import write_planted
from conftest import WORDS

LAYERS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.fixture(scope="session")
def known(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def spoken(random_lm, tmp_path_factory):
    """A run at the second block of the random model, whose store has 150 documents."""
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions, harvest
    from saelab.sae.topk import TopKConfig
    from saelab.training.adopt import adopt

    root = tmp_path_factory.mktemp("spoken")
    draw = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(150):
        words = torch.randint(2, len(WORDS), (20,), generator=draw).tolist()
        lines.append(json.dumps({"text": " ".join(WORDS[word] for word in words)}))
    (root / "text.jsonl").write_text("\n".join(lines))
    corpus = load_corpus(str(root / "text.jsonl"), random_lm, context_length=8)
    options = HarvestOptions(n_tokens=2000, dtype="float32", batch_size=16)
    store = harvest(random_lm, list(LAYERS), corpus, out=root / "store", options=options)
    sae = TopKConfig(d_sae=24, k=4).build(16, torch.Generator().manual_seed(1))
    return adopt(sae, activations=store.path, site=LAYERS[1], out=root / "run", origin="random")
