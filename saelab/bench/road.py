"""The whole road on this machine, stage by stage: a random model, a store, an SAE, its features."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from typing_extensions import TypeVar

from saelab.activations.batches import ShuffledBatches
from saelab.activations.corpus import Corpus, load_corpus
from saelab.activations.forward import model_input
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.activations.store import ActivationStore
from saelab.bench.machine import StepShape, measure_rates
from saelab.bench.pace import ROAD
from saelab.bench.step import step_config, time_step
from saelab.evaluation.evaluate import evaluate
from saelab.lm.hf import load_hugging_face_model
from saelab.lm.load import load_language_model
from saelab.lm.protocol import ActivationSource, LanguageModel
from saelab.lm.random_model import save_random_model
from saelab.lm.shape import model_shape
from saelab.provenance import provenance
from saelab.resources import free_on
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.training.run import Run

Result = TypeVar("Result")
Collect = Callable[[Run, LanguageModel, int], object]
"""Collects a run's features over so many tokens."""
SPARE = 1.3
"""The text has so many times the tokens that are recorded: a part of it is held out."""


@dataclass(frozen=True)
class RoadSize:
    """How long the road is.

    Attributes:
        n_layers, d_model, d_vocab: of the random GPT-2; its site is behind the middle block.
        n_tokens: tokens recorded; the SAE trains on `epochs` times as many.
        n_features: tokens that features reads.
    """

    n_layers: int = 12
    d_model: int = 768
    d_vocab: int = 50257
    length: int = 128
    variant: str = "topk"
    d_sae: int = 8192
    k: int = 32
    batch_size: int = 4096
    n_tokens: int = 100_000
    epochs: int = 1
    n_evaluated: int = 10_000
    n_features: int = 20_000

    @property
    def site(self) -> str:
        """The recorded site."""
        return f"blocks.{self.n_layers // 2}.hook_resid_post"


@dataclass
class RoadStage:
    """A stage of the road.

    Attributes:
        seconds: what saelab takes.
        floor: seconds of what it cannot do without, measured here; None: there is no such thing.
        of: what the floor is.
        more: figures that only this stage has.
    """

    name: str
    tokens: int
    seconds: float = 0.0
    floor: float | None = None
    of: str = ""
    more: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """`seconds / floor`."""
        return None if self.floor is None else self.seconds / self.floor


class Road:
    """The road in a directory; `travel` measures its stages in order.

    Attributes:
        half: whether the model and the products are in bfloat16: on CUDA.
        step: the training's step alone, once it is measured.
        read: bytes of the store per second, once it is measured.
    """

    def __init__(
        self, size: RoadSize, device: torch.device, directory: Path, collect: Collect
    ) -> None:
        self.size, self.device, self.directory = size, device, directory
        self._collect = collect
        self.half = device.type == "cuda"
        dtype = torch.bfloat16 if self.half else torch.float32
        self.rates = measure_rates(device, size=8192 if self.half else 1024, rounds=10, dtype=dtype)
        self._dtype = dtype
        self.step: dict[str, Any] = {}
        self.read = 0.0
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
        lm, seconds = self._timed(self._load)
        yield RoadStage("start", 0, seconds)
        corpus = load_corpus(str(self._text), lm, context_length=self.size.length)
        plain = load_hugging_face_model(self._model, device=self.device, dtype=self._dtype)
        store, stage = self._harvest(plain, corpus)
        yield stage
        run, stage = self._train(store)
        yield stage
        yield self._evaluate(run, lm, corpus)
        yield self._features(run, lm, corpus)

    @property
    def _model(self) -> str:
        return str(self.directory / "model")

    def _load(self) -> LanguageModel:
        return load_language_model(self._model, device=self.device, dtype=self._dtype)

    def _harvest(self, lm: ActivationSource, corpus: Corpus) -> tuple[ActivationStore, RoadStage]:
        size, site = self.size, self.size.site
        options = HarvestOptions(size.n_tokens)
        tokens = model_input(corpus.read(0, -(-size.n_tokens // size.length)).tokens)

        def passes() -> None:
            for batch in tokens.to(self.device).split(options.batch_size):
                lm.capture(batch, [site])

        lm.capture(tokens[: options.batch_size], [site])  # What is done first takes longer.
        store, seconds = self._timed(
            lambda: harvest(lm, [site], corpus, out=self.directory / "store", options=options)
        )
        shape = model_shape(self._model)
        operations = shape.operations(shape.layers_to([site]), size.length) * tokens.numel()
        floor = self._timed(passes)[1]
        more = {"operations": operations}
        return store, RoadStage(
            "harvest", size.n_tokens, seconds, floor, "the plain forward passes", more
        )

    def _train(self, store: ActivationStore) -> tuple[Run, RoadStage]:
        size = self.size
        precision = "bfloat16" if self.half else "float32"
        shape = StepShape(size.d_model, size.d_sae, size.k, size.batch_size)
        config = step_config(size.variant, shape, precision=precision)
        n_tokens = size.epochs * size.n_tokens
        config = config.model_copy(
            update={"activations": store.path, "site": size.site, "n_tokens": n_tokens}
        )
        step = time_step(config, shape, self.rates, self.device, steps=10)
        run, seconds = self._timed(
            lambda: train(config, out=self.directory / "run", device=self.device)
        )
        self.step = {
            "shape": asdict(shape),
            "products": run.load_sae().encoder_products,
            "seconds": step.seconds,
            "way": step.way,
        }
        self.read = self._reading(store, config)
        floor = step.seconds * config.n_steps
        return run, RoadStage("train", n_tokens, seconds, floor, "its steps alone, rows in memory")

    def _reading(self, store: ActivationStore, config: TrainConfig) -> float:
        """Bytes per second of the store, served as shuffled batches."""
        batches = ShuffledBatches(store, config.site, config.batch_size, device=self.device)
        n = max(1, store.n_rows // config.batch_size)

        def epoch() -> None:
            for _ in range(n):
                next(batches)

        seconds = self._timed(epoch)[1]
        return 2 * n * config.batch_size * self.size.d_model / seconds

    def _evaluate(self, run: Run, lm: LanguageModel, corpus: Corpus) -> RoadStage:
        size = self.size
        n = size.n_evaluated
        tokens = model_input(corpus.read(0, -(-n // size.length)).tokens)

        def passes() -> None:
            for _ in range(3):
                for batch in tokens.to(self.device).split(8):
                    out = lm.run(batch).at(...)
                    for part in out.pieces():
                        out.logits(part).float().log_softmax(-1)

        with torch.no_grad():
            floor = self._timed(passes)[1]
        _, seconds = self._timed(lambda: evaluate(run, lm, n_tokens=n))
        of = "three passes with log-probabilities: plain, spliced, zeros"
        return RoadStage("evaluate", n, seconds, floor, of)

    def _features(self, run: Run, lm: LanguageModel, corpus: Corpus) -> RoadStage:
        size, sae = self.size, run.load_sae().to(self.device)
        few = max(size.length, size.n_features // 4)
        tokens = model_input(corpus.read(0, -(-size.n_features // size.length)).tokens)

        def codes() -> None:
            for batch in tokens.to(self.device).split(32):
                sae.encode(lm.capture(batch, [size.site])[size.site].flatten(0, 1).float())

        def collected(n: int) -> float:
            return self._timed(lambda: self._collect(run, lm, n))[1]

        with torch.no_grad():
            floor = self._timed(codes)[1]
        first, seconds = collected(few), collected(size.n_features)
        # The slope over tokens; what is left is the latents'.
        slope = max(0.0, seconds - first) / (size.n_features - few)
        more = {
            "per_token": max(0.0, slope - floor / size.n_features),
            "per_latent": max(0.0, seconds - slope * size.n_features) / size.d_sae,
        }
        return RoadStage(
            "features", size.n_features, seconds, floor, "passes and codes alone", more
        )

    def _timed(self, work: Callable[[], Result]) -> tuple[Result, float]:
        started = time.perf_counter()
        out = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return out, time.perf_counter() - started

    def values(self, stages: Sequence[RoadStage]) -> dict[str, Any]:
        """What was measured, for a file that `pace_of_road` reads."""
        cuda = self.device.type == "cuda"
        return {
            "benchmark": ROAD,
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "memory": free_on(self.device),
            "rates": asdict(self.rates),
            "setting": asdict(self.size) | {"device": self.device.type, "half": self.half},
            "step": self.step,
            "read": self.read,
            "stages": [asdict(s) | {"ratio": s.ratio} | s.more for s in stages],
            "provenance": provenance(),
        }
