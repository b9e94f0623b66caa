"""An SAE in its language model, which everything that studies an SAE starts from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.host.layers import FurtherWrite, layer_sae
from saelab.lm.hf import load_source
from saelab.lm.joint import JointModel, plain_model
from saelab.lm.load import load_recorded_model, recorded_dtype
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import dtype_of
from saelab.sites import BEFORE_GAIN, Place, Site, parts_of, place_of
from saelab.training.domain import EVERYWHERE, Domain
from saelab.training.run import Run
from saelab.types import SparseCodes


@dataclass(frozen=True)
class Host:
    """A language model, an SAE, and the sites where the SAE reads and writes.

    Attributes:
        reads: the hook whose activations the SAE encodes.
        writes: the hook whose activations the SAE reconstructs, and where edits of latents are
            applied; equals `reads` unless the SAE is a transcoder.
        name: the SAE's name in graphs and messages.
        domain: the activations to which the SAE is applied. Elsewhere no latent fires, the error is
            the whole activation, and edits change nothing. Default: everywhere.
        run: the SAE's run, if it has one.
        maxima: the largest |activation| of each latent; None until steering reads it (see
            `saelab.analysis.steering.edits.with_maxima`).
        further: where its latents write beside `writes`, if it is a layer of a cross-layer
            transcoder; see `by_layer`.
        layer_of: the name of that transcoder, and the number of this layer's first latent in it.
    """

    lm: LanguageModel
    sae: AbstractSAE
    reads: str
    writes: str
    name: str
    domain: Domain = EVERYWHERE
    run: Run | None = None
    maxima: Float[Tensor, " d_sae"] | None = None
    further: tuple[FurtherWrite, ...] = ()
    layer_of: tuple[str, int] | None = None

    @classmethod
    def at(
        cls, lm: LanguageModel, sae: AbstractSAE, reads: str, writes: str | None = None
    ) -> "Host":
        """An SAE without a run, named after the hook that it reads."""
        return cls(lm, sae, reads, writes or reads, reads)

    @classmethod
    def of_run(cls, run: Run, lm: LanguageModel, sae: AbstractSAE | None = None) -> "Host":
        """A run's SAE in its model, with its domain; its name is the run's.

        The SAE is loaded to the model's device, unless it is given.

        Raises:
            UsageError: `lm` is not the run's model, or the run has no weights.
        """
        check_model(lm, run)
        lm = _in_its_models(run, lm)
        sae = run.load_sae(str(lm.device)) if sae is None else sae
        config = run.config
        return cls(lm, sae, config.site, config.written_site, run.name, run.domain, run)

    @property
    def sites(self) -> list[str]:
        """The hooks that the SAE reads and writes: one, or two of a transcoder."""
        return list(dict.fromkeys((self.reads, self.writes)))

    @property
    def is_transcoder(self) -> bool:
        """Whether the SAE writes another site than it reads."""
        return self.reads != self.writes

    @property
    def replaceable(self) -> bool:
        """Whether what is written can be replaced in the model; see `Site.replaceable`.

        Several sites cannot: what is read at a later one depends on an earlier one.
        """
        return len(self.sae.widths) == 1 and Site.of(self.writes).replaceable

    @cached_property
    def by_layer(self) -> "tuple[Host, ...]":
        """The layers of a cross-layer transcoder, each a host of its own; else itself alone.

        A layer is called NAME/LAYER and numbers its latents from 0. It is applied where its own
        activations have the norms of training; training also looked at the other layers'.
        """
        parts = self.sae.transcoders()
        if not parts:
            return (self,)
        reads, writes = parts_of(self.reads), parts_of(self.writes)
        into, out = self.domain.parts, self.domain.target_parts
        factors = [[part.factor for part in each] or [1.0] * len(parts) for each in (into, out)]
        limits = [[part.max_norm for part in each] or [None] * len(parts) for each in (into, out)]
        places = list(zip(writes, factors[1], limits[1], strict=True))
        hosts, lm = [], plain_model(self.lm)
        for number, part in enumerate(parts):
            sae = layer_sae(part, factors[0][number], factors[1][number]).to(self.sae.W_dec.device)
            further = tuple(
                FurtherWrite(site, rows, 1 / factor, limit)
                for (site, factor, limit), rows in zip(
                    islice(places, number + 1, None), part.later, strict=True
                )
            )
            domain = replace(
                self.domain, max_norm=limits[0][number], max_target_norm=limits[1][number],
                parts=(), target_parts=(),
            )  # fmt: skip
            name = f"{self.name}/{Site.of(reads[number]).layer}"
            sites = reads[number], writes[number]
            hosts.append(
                Host(lm, sae, *sites, name, domain, self.run, None, further,
                     (self.name, part.first))
            )  # fmt: skip
        return tuple(hosts)

    @property
    def before_post(self) -> bool:
        """Whether the written site is an MLP's or attention's output before it is scaled or normed.

        The two differ if a norm or a multiplier follows (Gemma 2 and 3, OLMo 2, Granite):
        `mlp.hook_out` and `attn.hook_out` are before it, `hook_mlp_out`, `hook_attn_out` after it.
        """
        return Site.of(self.writes).part in ("mlp.hook_out", "attn.hook_out")

    @property
    def before_gain(self) -> bool:
        """Whether it reads an MLP's input before the norm's gain and bias."""
        return Site.of(self.reads).part == BEFORE_GAIN

    @property
    def place(self) -> Place:
        """Where it stands in the order of the computation.

        Raises:
            UsageError: attribution knows no exact rule for what it reads and writes.
        """
        if (place := place_of(self.reads, self.writes)) is not None:
            return place
        raise UsageError(
            f"{self.name} reads {self.reads}"
            + (f" and writes {self.writes}" if self.is_transcoder else "")
            + "; circuits take SAEs at attn.hook_z, hook_attn_out (or attn.hook_out), "
            "hook_resid_pre or hook_resid_post, and "
            "transcoders from mlp.hook_in (or ln2.hook_out, ln2.hook_normalized) to hook_mlp_out "
            "or mlp.hook_out."
        )

    def encode(
        self,
        tokens: Int[Tensor, "batch pos"],
        x: Float[Tensor, "batch pos d_in"],
        target: Float[Tensor, "batch pos d_out"],
    ) -> tuple[SparseCodes, Bool[Tensor, "batch pos"]]:
        """The codes of every row of whole contexts, batch by batch, and where the SAE is applied.

        Elsewhere no latent fires. `target` is what a transcoder reconstructs; by default it is `x`.
        """
        applies = self.domain.covers(tokens.to(x.device), x, target=target)
        rows = rearrange(x, "b p d -> (b p) d").to(dtype_of(self.sae))
        where = applies.flatten()
        if bool(where.all()):
            return self.sae.encode(rows), applies
        none = rows.new_zeros(len(rows), 1)
        values, indices = none, none.long()
        if bool(where.any()):
            codes = self.sae.encode(rows[where]).rectangular()
            shape = len(rows), codes.values.shape[1]
            values = rows.new_zeros(shape).masked_scatter(where[:, None], codes.values)
            indices = none.new_zeros(shape).long().masked_scatter(where[:, None], codes.indices)
        return SparseCodes(values, indices, self.sae.d_sae), applies

    def applied(
        self,
        mask: Bool[Tensor, "batch pos"],
        read: Float[Tensor, "batch pos d_in"],
        written: Float[Tensor, "batch pos d_out"],
    ) -> Bool[Tensor, "batch pos"]:
        """The masked positions whose activations have no norm that training left out."""
        return mask & self.domain.within(read, written)


def load_model_of(
    runs: Sequence[Run], *, name: str | None = None, device: str | torch.device = "auto"
) -> LanguageModel:
    """The language model of these runs, by the faster back end that has the sites of all.

    `name` says where the model is now, if not at its old place.

    Raises:
        UsageError: the model does not exist, or the first run records none.
    """
    facts = runs[0].model()
    sites = [site for run in runs for site in (run.config.site, run.config.written_site)]
    hooks = list(dict.fromkeys(hook for site in sites for hook in parts_of(site)))
    dtype = recorded_dtype(facts)
    return load_source(name or str(facts["name"]), hooks, device=device, dtype=dtype)


def by_layer(hosts: Sequence[Host]) -> list[Host]:
    """The hosts, with every cross-layer transcoder as its layers."""
    return [part for host in hosts for part in host.by_layer]


def _in_its_models(run: Run, lm: LanguageModel) -> LanguageModel:
    """The model in which the run's site can be read: for a joint site, with all its models.

    Raises:
        UsageError: another model of the run does not exist, or has other weights than it had.
    """
    parts, others = run.domain.parts, []
    if not parts:
        return lm
    for beside in run.provenance().get("beside", ()):
        facts = beside["model"]
        other = load_recorded_model(facts, device=lm.device)
        if other.info.weights_digest != facts["weights_digest"]:
            raise UsageError(
                f"{run.path} also reads {facts['name']}, which has other weights than when it was "
                "harvested; put the old ones back."
            )
        others.append(other)
    joint = JointModel(lm, run.config.site, [part.factor for part in parts], others)
    written = [part.factor for part in run.domain.target_parts]
    return JointModel(joint, run.config.written_site, written) if written else joint


def check_model(lm: LanguageModel, run: Run) -> None:
    """Refuse a model other than the one whose activations the run was trained on.

    Raises:
        UsageError: the weights or the tokenizer differ, or the run records no model.
    """
    trained_on = run.model()
    for field in ("weights_digest", "tokenizer_digest"):
        here = getattr(lm.info, field)
        if trained_on[field] != here:
            raise UsageError(
                f"{run.path} was trained on {trained_on['name']} ({field} "
                f"{trained_on[field][:12]}), not on {lm.info.name} ({here[:12]}); "
                "pass --model with the first one's name or directory."
            )
