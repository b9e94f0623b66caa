"""What live training of many SAEs takes, beside the model's passes and the SAEs' own steps."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.activations.store import ActivationStore
from saelab.bench.machine import NO_RATES, StepShape
from saelab.bench.step import step_config, time_step
from saelab.kernels.cuda import finish
from saelab.lm.cost import pass_contexts
from saelab.lm.hf import load_hugging_face_model
from saelab.lm.protocol import ActivationSource
from saelab.lm.random_model import save_random_model
from saelab.training.config import TrainConfig
from saelab.training.loop import train_many
from saelab.training.run import Run

PASSES = 1.5
"""A live step should take this many times its plain passes, and the SAEs' own steps."""
ROUNDS = 3
POOL_STEPS = 8
"""Steps for which rows are shuffled together: with 8192 rows each, as many as by default."""


@dataclass(frozen=True)
class LiveSize:
    """A random GPT-2, with a transcoder and an attention SAE at each of its layers.

    Attributes:
        length: positions of a context.
        steps: steps that are timed, after as many that are not; a multiple of `POOL_STEPS`.
    """

    n_layers: int
    d_model: int
    d_vocab: int
    length: int
    d_sae: int
    k: int
    batch_size: int
    steps: int


@dataclass(frozen=True)
class LiveTimes:
    """Seconds of a step of all SAEs.

    Attributes:
        n: number of SAEs.
        live: as one pass feeds them all, by the log of the training.
        passes: plain forward passes over the step's rows.
        steps: the SAEs' steps alone, rows in memory, one after the other.
        way: how a step is done.
    """

    n: int
    live: float
    passes: float
    steps: float
    way: str

    @property
    def ratio(self) -> float:
        """`live` over what it should take at most."""
        return self.live / (PASSES * self.passes + self.steps)


def measure_live(size: LiveSize, device: torch.device, directory: Path) -> LiveTimes:
    """The times of a live sweep in a directory of its own."""
    half = device.type == "cuda"
    shape = StepShape(size.d_model, size.d_sae, size.k, size.batch_size)
    own = _own(shape, "bfloat16" if half else "float32")
    text = save_random_model(
        directory / "model",
        n_layers=size.n_layers,
        d_model=size.d_model,
        d_vocab=size.d_vocab,
        length=size.length,
        n_words=6 * POOL_STEPS * size.batch_size,
    )
    dtype = torch.bfloat16 if half else torch.float32
    lm = load_hugging_face_model(str(directory / "model"), device=device, dtype=dtype)
    pairs = _sites(size)
    hooks = [hook for pair in pairs.values() for hook in pair if hook is not None]
    corpus = load_corpus(str(text), lm, context_length=size.length)
    options = HarvestOptions(2 * size.batch_size)
    store = harvest(lm, hooks, corpus, out=directory / "store", options=options)
    alone = {
        both: time_step(config, shape, NO_RATES, device, steps=max(3, size.steps // 10))
        for both, config in own.items()
    }
    configs = {
        directory / "runs" / name: _live(own[target is not None], store, site, target, size)
        for name, (site, target) in pairs.items()
    }
    runs = train_many(configs, device=device, lm=lm)
    return LiveTimes(
        len(runs),
        size.batch_size / _speed(runs[0]),
        _passes(lm, hooks, size, device),
        size.n_layers * sum(each.seconds for each in alone.values()),
        alone[False].way,
    )


def _own(shape: StepShape, precision: str) -> dict[bool, TrainConfig]:
    """How an SAE is trained, and how a transcoder is (True)."""
    both = {
        transcoder: step_config("topk", shape, precision=precision, transcoder=transcoder)
        for transcoder in (False, True)
    }
    both[False].sae.check()
    return both


def _sites(size: LiveSize) -> Mapping[str, tuple[str, str | None]]:
    """The site and the target site of each SAE."""
    found: dict[str, tuple[str, str | None]] = {}
    for layer in range(size.n_layers):
        block = f"blocks.{layer}"
        found[f"mlp-{layer}"] = f"{block}.ln2.hook_out", f"{block}.hook_mlp_out"
        found[f"attn-{layer}"] = f"{block}.attn.hook_z", None
    return found


def _live(
    own: TrainConfig, store: ActivationStore, site: str, target: str | None, size: LiveSize
) -> TrainConfig:
    # One step more, as a training's last line also counts what the others write at their ends.
    n = 2 * size.steps + 1
    changes = {"activations": store.path, "site": site, "target_site": target, "live": True}
    changes |= {"buffer_rows": POOL_STEPS * size.batch_size, "n_tokens": n * size.batch_size}
    every = {"log_every": size.steps, "checkpoint_every": 2 * n}
    return own.model_copy(update=changes | every)


def _speed(run: Run) -> float:
    """Rows per second of the timed steps."""
    return run.metrics()[1]["tokens_per_second"]


@torch.no_grad()
def _passes(lm: ActivationSource, hooks: list[str], size: LiveSize, device: torch.device) -> float:
    """Seconds of plain passes over the rows of a step: the best of a few rounds."""
    at_once = pass_contexts(lm, size.length)
    n = max(4 * at_once, size.batch_size // size.length)
    tokens = torch.randint(1, size.d_vocab, (n, size.length)).to(device)
    best = float("inf")
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        for some in tokens.split(at_once):
            lm.capture(some, hooks)
        finish(device)
        best = min(best, time.perf_counter() - started)
    # A context has no row of its first token.
    return best / (n * (size.length - 1)) * size.batch_size
