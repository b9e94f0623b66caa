"""The whole road on this machine, stage by stage: a random model, a store, an SAE, its features."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.activations.batches import ShuffledBatches
from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.activations.store import ActivationStore
from saelab.bench.machine import StepShape, measure_rates
from saelab.bench.pace import ROAD
from saelab.bench.step import step_config, time_step
from saelab.bench.store import plain_writing
from saelab.evaluation.evaluate import evaluate
from saelab.kernels.cuda import finish
from saelab.kernels.rules import FusedRule
from saelab.lm.hf import load_hugging_face_model
from saelab.lm.protocol import LanguageModel
from saelab.lm.random_model import save_random_model
from saelab.lm.shape import model_shape
from saelab.provenance import provenance
from saelab.resources import free_on
from saelab.training.loop import train
from saelab.training.run import Run

Collect = Callable[[Run, LanguageModel, int], int]
"""Collects a run's features over so many tokens, and says over how many it did."""
FEW = 4
"""The smaller of a stage's two measurements has this part of the tokens."""
SPARE = 1.3
"""The text has so many times the tokens that are recorded: a part of it is held out."""
START = """import sys, saelab.collector, saelab.lm.hf as hf
saelab.collector.whole_process(lambda: hf.load_hugging_face_model(sys.argv[1]))"""
"""What a verb does before its own work, and at its end."""


@dataclass(frozen=True)
class RoadSize:
    """How long the road is.

    Attributes:
        n_layers, d_model, d_vocab: of the random GPT-2; its site is behind the middle block.
        n_tokens: tokens recorded.
        n_trained, n_evaluated, n_features: tokens that each stage reads.
    """

    n_layers: int
    d_model: int
    d_vocab: int
    length: int
    variant: str
    d_sae: int
    k: int
    batch_size: int
    n_tokens: int
    n_trained: int
    n_evaluated: int
    n_features: int

    @property
    def site(self) -> str:
        """The recorded site."""
        return f"blocks.{self.n_layers // 2}.hook_resid_post"


@dataclass(frozen=True)
class RoadStage:
    """A stage of the road.

    Attributes:
        seconds: what saelab takes for `tokens`.
        fixed: of these, what it takes for no token, by a measurement of fewer.
        floor: seconds of what it cannot do without, measured here; None: there is no such thing.
        of: what the floor is.
    """

    name: str
    tokens: int
    seconds: float
    fixed: float
    floor: float | None = None
    of: str = ""

    @property
    def ratio(self) -> float | None:
        """`seconds / floor`."""
        return None if self.floor is None else self.seconds / self.floor


class Road:
    """The road in a directory; `travel` measures its stages in order.

    Attributes:
        half: whether the model and the products are in bfloat16: on CUDA.
        step: the training's step alone, once it is measured.
        forward, read, write: once measured, the share of the products' rate that a plain forward
            pass reaches, and bytes of the store per second; writing is durable.
    """

    def __init__(
        self, size: RoadSize, device: torch.device, directory: Path, collect: Collect
    ) -> None:
        self.size, self.device, self.directory = size, device, directory
        self._collect = collect
        self.half = device.type == "cuda"
        self._dtype = torch.bfloat16 if self.half else torch.float32
        self.rates = measure_rates(
            device, size=8192 if self.half else 1024, rounds=10, dtype=self._dtype
        )
        self.step: dict[str, Any] = {}
        self.forward = self.read = self.write = 0.0
        self._text = save_random_model(
            directory / "model",
            n_layers=size.n_layers,
            d_model=size.d_model,
            d_vocab=size.d_vocab,
            length=size.length,
            n_words=int(SPARE * max(size.n_tokens, size.n_features, 20 * size.n_evaluated)),
        )

    def travel(self) -> Iterator[RoadStage]:
        """Each stage as soon as it is measured."""
        yield self._start()
        store, stage = self._harvest()
        yield stage
        run, stage = self._train(store)
        yield stage
        lm = load_hugging_face_model(self._model, device=self.device, dtype=self._dtype)
        yield self._evaluate(run, lm)
        yield self._features(run, lm)

    @property
    def _model(self) -> str:
        return str(self.directory / "model")

    def _start(self) -> RoadStage:
        """A fresh process that loads the model."""
        command = [sys.executable, "-c", START, self._model]
        seconds = self._timed(lambda: subprocess.run(command, check=True, capture_output=True))
        return RoadStage("start", 0, seconds, seconds)

    def _harvest(self) -> tuple[ActivationStore, RoadStage]:
        size, numbers = self.size, count()
        lm = load_hugging_face_model(self._model, device=self.device, dtype=self._dtype)
        corpus = load_corpus(str(self._text), lm, context_length=size.length)
        stores: list[ActivationStore] = []

        def record(n: int) -> int:
            out = self.directory / f"store-{next(numbers)}"
            options = HarvestOptions(n)
            stores.append(harvest(lm, [size.site], corpus, out=out, options=options))
            return stores[-1].n_rows

        n = HarvestOptions(1).contexts_at_once(self.device, size.length)
        passes = self._passes(lambda tokens: lm.capture(tokens, [size.site]), at_once=n)
        shape = model_shape(self._model)
        operations = shape.operations(shape.layers_to([size.site]), size.length)

        def floor(n: int) -> float:
            passed = passes(n)
            self.forward = n * operations / passed / self.rates.matmul
            files = [*stores[-1].path.glob("hooks/*/*.h5")]
            writing = plain_writing(files, self.directory / "raw")
            self.write = sum(file.stat().st_size for file in files) / writing
            return max(passed, writing)

        of = "the forward passes, or durable writing if slower"
        stage = self._stage("harvest", size.n_tokens, record, floor, of)
        return stores[-1], stage

    def _train(self, store: ActivationStore) -> tuple[Run, RoadStage]:
        size, numbers = self.size, count()
        shape = StepShape(size.d_model, size.d_sae, size.k, size.batch_size)
        precision = "bfloat16" if self.half else "float32"
        config = step_config(size.variant, shape, precision=precision)
        config = config.model_copy(update={"activations": store.path, "site": size.site})
        step = time_step(config, shape, self.rates, self.device, steps=10)
        runs: list[Run] = []

        def learn(n: int) -> int:
            own, name = config.model_copy(update={"n_tokens": n}), f"run-{next(numbers)}"
            runs.append(train(own, out=self.directory / name, device=self.device))
            return own.n_steps * size.batch_size

        of = "its steps alone, rows in memory"
        stage = self._stage(
            "train", size.n_trained, learn, lambda n: n / size.batch_size * step.seconds, of
        )
        sae = runs[-1].load_sae()
        alone = {"shape": asdict(shape), "seconds": step.seconds, "way": step.way}
        rule = sae.fused_rule()
        pursues = isinstance(rule, FusedRule) and rule.pursues
        self.step = {**alone, "products": sae.encoder_products, "pursues": pursues}
        self.read = self._reading(store)
        return runs[-1], stage

    def _reading(self, store: ActivationStore) -> float:
        """Bytes per second of the store, served as shuffled batches."""
        size = self.size
        batches = ShuffledBatches(store, size.site, size.batch_size, device=self.device)
        n = max(1, store.n_rows // size.batch_size)

        def epoch() -> None:
            for _ in range(n):
                next(batches)

        return 2 * n * size.batch_size * size.d_model / self._timed(epoch)

    def _evaluate(self, run: Run, lm: LanguageModel) -> RoadStage:
        def measure(n: int) -> int:
            return evaluate(run, lm, n_tokens=n).reconstruction["n_tokens"]

        def predict(tokens: Tensor) -> None:
            out = lm.run(tokens).at(...)
            for part in out.pieces():
                out.logits(part).float().log_softmax(-1)

        of = "three passes with log-probabilities: plain, spliced, zeros"
        passes = self._passes(predict, times=3)
        return self._stage("evaluate", self.size.n_evaluated, measure, passes, of)

    def _features(self, run: Run, lm: LanguageModel) -> RoadStage:
        size, sae = self.size, run.load_sae().to(self.device)

        def collect(n: int) -> int:
            return self._collect(run, lm, n)

        codes = self._passes(
            lambda tokens: sae.encode(
                lm.capture(tokens, [size.site])[size.site].flatten(0, 1).float()
            )
        )
        return self._stage("features", size.n_features, collect, codes, "passes and codes alone")

    def _passes(
        self, one: Callable[[Tensor], object], *, times: int = 1, at_once: int = 32
    ) -> Callable[[int], float]:
        """Takes the time of so many passes over so many random tokens, some contexts at once."""

        @torch.no_grad()
        def seconds(n: int) -> float:
            shape = (-(-n // self.size.length), self.size.length)
            tokens = torch.randint(1, self.size.d_vocab, shape).to(self.device)
            one(tokens[:1])
            return times * self._timed(lambda: [one(some) for some in tokens.split(at_once)])

        return seconds

    def _stage(
        self,
        name: str,
        tokens: int,
        work: Callable[[int], int],
        floor: Callable[[int], float],
        of: str,
    ) -> RoadStage:
        """A stage measured on few tokens and on all, after one that is not counted.

        `work` says how many tokens it read, and `floor` how many seconds are the floor for them.
        """
        done: list[tuple[int, float]] = []
        for n in (tokens // FEW, tokens // FEW, tokens):
            started = time.perf_counter()
            read = work(n)
            done.append((read, time.perf_counter() - started))
        (few, short), (n, long) = done[1:]
        slope = max(0.0, long - short) / max(1, n - few)
        return RoadStage(name, n, long, max(0.0, long - slope * n), floor(n), of)

    def _timed(self, work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        finish(self.device)
        return time.perf_counter() - started

    def values(self, stages: Sequence[RoadStage]) -> dict[str, Any]:
        """What was measured, for a file that `pace_of_road` reads."""
        cuda = self.device.type == "cuda"
        return {
            "benchmark": ROAD,
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "memory": free_on(self.device),
            "rates": asdict(self.rates),
            "setting": asdict(self.size) | {"half": self.half},
            "step": self.step,
            "forward": self.forward,
            "read": self.read,
            "write": self.write,
            "stages": [asdict(s) | {"ratio": s.ratio} for s in stages],
            "provenance": provenance(),
        }
