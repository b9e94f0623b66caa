"""What a training reads: one site of a store, in one order, for one or more SAEs at once."""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from saelab.activations.batches import BatchSites, ShuffledBatches
from saelab.activations.contexts import ContextBatches, TokenBatch
from saelab.activations.corpus import Corpus, recorded_corpus
from saelab.activations.format import JsonObject
from saelab.activations.joint import AnySite, JointSite
from saelab.activations.live_pool import LiveSite
from saelab.activations.order import permutation
from saelab.activations.resume import Position
from saelab.activations.store import ActivationStore
from saelab.activations.verify import check_markers
from saelab.config import UsageError
from saelab.lm.hf import load_source
from saelab.lm.load import load_recorded_model, recorded_dtype
from saelab.lm.protocol import ActivationSource, LanguageModel
from saelab.shard import ALONE, Replicas
from saelab.sites import parts_of
from saelab.training.config import TrainConfig
from saelab.training.constant import check_varies
from saelab.training.selection import Selection, select
from saelab.types import ActivationBatch

START_ROWS = 32_768
"""Number of rows that initialise an SAE's bias, as in the code of arXiv 2406.04093."""
HELD_BACK_BLOCKS = 32
HELD_BACK_SHARE = 0.05
HOLD_BACK = 1  # Keeps this permutation apart from the others of the same seed.

Batch = ActivationBatch | TokenBatch


@runtime_checkable
class Stream(Position, Protocol):
    """Such batches."""

    def __next__(self) -> Batch:
        """The next batch."""
        ...


class Source:
    """A site of a store, opened for the SAEs of `configs`, which all read the same batches.

    Massive activations are left out unless `TrainConfig.outliers` says otherwise: see `selection`.
    Some rows are held back from training to calibrate thresholds: a twentieth of the store (at most
    32,768 rows); for end-to-end training, which reads whole contexts, the last unit; for live
    training on an endless text, the whole store. If no rows can be held back, SAEs are calibrated
    on training rows, and `held_back` is False.

    Raises:
        UsageError: the store, the site, or the gradients that an SAE needs do not exist.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        device: torch.device,
        lm: ActivationSource | None = None,
    ) -> None:
        self.config = config = configs[0]
        self.device = device
        self._lm = lm
        self.store = ActivationStore(config.activations, beside=config.beside)
        self.site = self.store.site(config.site)
        self.target = self.site if config.target_site is None else self._target_site()
        self._grad: str | None = None
        if any(each.sae.needs_gradient for each in configs):
            self._grad = self._gradient_site()
        length = self.store.manifest.context_length
        if self.end_to_end and config.batch_size % length:
            fits = max(1, round(config.batch_size / length)) * length
            raise UsageError(
                f"batch_size={config.batch_size} is no multiple of the store's context length "
                f"{length}, of which training end to end reads whole contexts; take {fits}."
            )

    def check_markers(self) -> None:
        """Refuse a store whose token files are damaged, before anything is written.

        Raises:
            DamagedStoreError: the message names the file.
        """
        sites = (self.config.site, self.config.written_site)
        hooks = {hook for site in sites for hook in parts_of(site)}
        for store in (self.store, *self.store.beside):
            check_markers(store, hooks)

    def check_varies(self) -> None:
        """Refuse a site whose rows are all alike: there is no variance to explain.

        Raises:
            UsageError: no row and no channel differs by more than rounding.
        """
        for name, site in {
            self.config.site: self.site,
            self.config.written_site: self.target,
        }.items():
            check_varies(name, site, self.store, self.config.order_seed)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the sites that are read, if they are several; else empty."""
        return self.site.widths if isinstance(self.site, JointSite) else ()

    @property
    def end_to_end(self) -> bool:
        """Whether batches are tokens for the model instead of activations."""
        return self.config.runs_model

    def model(self) -> LanguageModel:
        """The model whose activations are in the store; loaded at first use.

        Raises:
            UsageError: the store names no model, or the given model is another one.
        """
        if not isinstance(self._lm, LanguageModel):
            self._lm = load_recorded_model(self._facts, device=self.device)
        self._check_model(self._lm)
        return self._lm

    def reader(self, hooks: Sequence[str] = ()) -> ActivationSource:
        """The model, by the faster back end that has these hooks if it is not loaded yet.

        Raises:
            UsageError: as for `model`.
        """
        if self._lm is None:
            name, dtype = str(self._facts["name"]), recorded_dtype(self._facts)
            every = hooks or self.live_site.hooks
            self._lm = load_source(name, every, device=self.device, dtype=dtype)
        self._check_model(self._lm)
        return self._lm

    @property
    def _facts(self) -> JsonObject:
        """The facts of the store's model."""
        facts = self.store.manifest.model
        if facts is None:
            raise UsageError(
                f"{self.store.path} holds arrays without a language model, which this training "
                "runs; train with --objective local or masked and without --live."
            )
        return facts

    def _check_model(self, lm: ActivationSource) -> None:
        if lm.info.weights_digest != self._facts["weights_digest"]:
            raise UsageError(
                f"{self.store.path} was harvested from {self._facts['name']} with other weights "
                f"than {lm.info.name} has; harvest again, or give the model it came from."
            )

    @cached_property
    def selection(self) -> Selection:
        """The rows of the store to train on."""
        return select(self.store, self.config)

    @cached_property
    def held_back(self) -> bool:
        """Whether training does not read `calibration_rows`."""
        if self.config.live:
            return self.text.endless
        return len(self.store.units) > 1 if self.end_to_end else len(self._blocks) > 0

    def stream(self, replicas: Replicas = ALONE) -> Stream:
        """The batches of the store, from the first on; of each, this replica's rows."""
        config = self.config
        if not self.end_to_end:
            return ShuffledBatches(
                self.store,
                BatchSites(
                    config.site,
                    target=config.target_site,
                    grad=self._grad,
                    held_back=self._blocks,
                    left_out=self.selection.left_out,
                    part=replicas.rows(config.batch_size),
                ),
                config.batch_size,
                seed=config.order_seed,
                device=self.device,
            )
        return ContextBatches(
            self.store,
            config.batch_size // self.store.manifest.context_length,
            seed=config.order_seed,
            device=self.device,
            skip_units=self.store.units[-1:] if self.held_back else (),
        )

    def start_rows(self) -> Float[Tensor, "n d_in"]:
        """Sampled rows that initialise biases; the same for every SAE of this source."""
        return self.site.take(self._sample)

    @property
    def start_targets(self) -> Float[Tensor, "n d_out"]:
        """The reconstruction targets at `start_rows`, for transcoders."""
        return self.target.take(self._sample)

    @cached_property
    def _sample(self) -> Integer[np.ndarray, " n"]:
        n = min(START_ROWS, self.site.n_rows)
        return self.selection.kept(self.store.sample_rows(n, self.config.order_seed))

    def calibration_rows(self) -> Float[Tensor, "n d_in"]:
        """Rows for calibration, held back from training if the store is large enough."""
        return self._calibration(self.site) if self.held_back else self.start_rows()

    def calibration_targets(self) -> Float[Tensor, "n d_out"]:
        """The reconstruction targets at `calibration_rows`, for transcoders."""
        return self._calibration(self.target) if self.held_back else self.start_targets

    def _calibration(self, site: AnySite) -> Float[Tensor, "n _"]:
        """The rows held back, without those that training leaves out anyway."""
        table, chosen = self.store.blocks, self._held_back_blocks()
        starts, counts = table.start[chosen], table.count[chosen]
        rows = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
        kept = np.isin(rows, self.selection.kept(rows))
        return site.read_blocks(chosen)[torch.from_numpy(kept)].float()

    def calibration_index(self) -> Int[np.ndarray, " row"]:
        """The store indices of `calibration_rows`."""
        if not self.held_back:
            return self.store.sample_rows(min(START_ROWS, self.site.n_rows), self.config.order_seed)
        blocks = self._held_back_blocks()
        starts, counts = self.store.blocks.start[blocks], self.store.blocks.count[blocks]
        return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])

    def _held_back_blocks(self) -> Int[np.ndarray, " block"]:
        return np.asarray(self._last_unit() if self.end_to_end else self._blocks)

    @cached_property
    def _blocks(self) -> tuple[int, ...]:
        """The blocks held back when batches are rows."""
        n = len(self.store.blocks.count)
        share = max(1, int(HELD_BACK_SHARE * n)) if n > 1 else 0
        order = permutation(n, self.config.order_seed, 0, HOLD_BACK)
        return tuple(sorted(order[: min(share, HELD_BACK_BLOCKS)].tolist()))

    @property
    def live_site(self) -> LiveSite:
        """What an SAE of this source reads of the running model."""
        config, domain = self.config, self.selection.domain
        return LiveSite(config.site, config.target_site, domain.max_norm, domain.max_target_norm)

    @cached_property
    def text(self) -> Corpus:
        """The text that the model runs on for live training."""
        manifest, lm = self.store.manifest, self.reader()
        if manifest.corpus is None:
            raise UsageError(f"{self.store.path} has no text, which --live runs the model on.")
        return recorded_corpus(
            manifest.corpus, lm, "train", manifest.context_length, kept=self.store.path
        )

    def _last_unit(self) -> tuple[int, ...]:
        last = len(self.store.units) - 1
        blocks = np.flatnonzero(self.store.blocks.unit == last)
        return tuple(blocks[:HELD_BACK_BLOCKS].tolist())

    def _target_site(self) -> AnySite:
        """The site that a transcoder reconstructs."""
        name = self.config.target_site
        assert name is not None
        if not {*parts_of(name)} <= {*self.store.sites}:
            raise UsageError(
                f"{self.store.path} holds no {name} to reconstruct, only "
                f"{', '.join(self.store.sites)}; harvest both sites into one store."
            )
        return self.store.site(name)

    def _gradient_site(self) -> str:
        name = f"{self.config.written_site}.gradient"
        if name not in self.store.sites:
            raise UsageError(
                f"{self.store.path} holds no gradients at {self.config.written_site}, which a "
                "gradient SAE trains on; harvest again with --gradients, or "
                "give write_arrays(gradients=...)."
            )
        return name
