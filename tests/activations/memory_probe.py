"""Harvest a text with a model that costs nothing, and read the store shuffled.

    python memory_probe.py DIRECTORY TOKENS

Prints as JSON the peak resident MB of the process so far: after the text is tokenised, after the
harvest, and after one epoch of shuffled reading.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from saelab.activations.batches import ShuffledBatches
from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.lm.protocol import ModelInfo

D_IN, LENGTH = 64, 128
SITE = "blocks.0.hook_resid_post"
DOCUMENT = 2000
"""Tokens of one."""


class Numbers:
    """A tokenizer of texts of numbers."""

    def encode(self, text):
        return [int(word) for word in text.split()]

    def token(self, token_id):
        return str(token_id)


class CheapModel:
    """Activations that are a function of the token."""

    info = ModelInfo(
        name="cheap", architecture="none", n_layers=1, d_model=D_IN, n_heads=1, d_head=D_IN,
        d_vocab=1000, n_ctx=LENGTH, weights_digest="0", tokenizer_digest="0",
    )  # fmt: skip
    tokenizer = Numbers()
    device = torch.device("cpu")
    table = torch.randn(1000, D_IN, generator=torch.Generator().manual_seed(0))

    def width(self, hook):
        return D_IN

    def capture(self, tokens, hooks):
        return dict.fromkeys(hooks, self.table[tokens])

    def gradients(self, tokens, hooks, real):
        raise NotImplementedError


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(n_tokens, directory):
    directory.mkdir()
    text = directory / "text.jsonl"
    words = " ".join(str(i % 1000) for i in range(DOCUMENT))
    with text.open("w") as file:
        for _ in range(n_tokens // DOCUMENT + 1):
            file.write(json.dumps({"text": words}) + "\n")
    lm: Any = CheapModel()
    corpus = load_corpus(str(text), lm, context_length=LENGTH)
    peaks = {"text": peak_mb()}
    # A twentieth of the text is held out.
    options = HarvestOptions(n_tokens=int(0.9 * n_tokens))
    store = harvest(lm, [SITE], corpus, out=directory / "store", options=options)
    peaks["harvest"] = peak_mb()
    batches = ShuffledBatches(store, SITE, 4096)
    for _ in range(store.n_rows // 4096):
        next(batches)
    peaks["read"] = peak_mb()
    return {"rows": store.n_rows, **peaks}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    sys.stdout.write(json.dumps(run(int(sys.argv[2]), root / "run")))
