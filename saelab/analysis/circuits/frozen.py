"""A model on one prompt with its SAEs inserted and everything nonlinear held fixed.

Each site is written as latents + b_dec + error, so all values equal those of the plain model. Where
an SAE is not applied (see `Domain`), the error is the whole activation. Of a cross-layer transcoder
each layer is an SAE of its own, whose latents also write to later MLP outputs. Constants are:
attention patterns (and so norms of queries and keys, soft caps and windows, which only affect
patterns), the scales of all other norms, the set of active latents, and MLP outputs without a
transcoder. The rest, a transcoder's skip connection included, is linear: every latent and every
logit is a sum over the leaves (arXiv 2405.13868, section 3).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.circuits.active import Active, FurtherRows, Skip
from saelab.config import UsageError
from saelab.host.host import Host, by_layer
from saelab.lm.internals import model_weights
from saelab.lm.linear.paths import ModelWeights, Norm
from saelab.lm.protocol import LanguageModel
from saelab.lm.record import ForwardRecord, check_whole, record_forward
from saelab.sae.affine import TakenRows
from saelab.sae.linear import linearize
from saelab.sites import Place, Site


@dataclass(frozen=True)
class Frozen:
    """A prompt's linear model.

    Attributes:
        record: the forward pass, a batch of one.
        actives: the SAEs' active latents, in order of depth.
    """

    weights: ModelWeights
    record: ForwardRecord
    actives: tuple[Active, ...]

    @property
    def n_pos(self) -> int:
        """Number of tokens of the prompt."""
        return self.record.tokens.shape[1]

    @property
    def logit_constant(self) -> str:
        """The leaf for the part of logits that does not depend on the stream.

        It is b_U, and the difference that a soft cap makes beyond its slope.
        """
        return "bias b_U" if self.weights.soft_cap is None else "bias b_U and soft cap"

    @cached_property
    def at_place(self) -> dict[Place, int]:
        """The SAE in `actives` at a given place."""
        return {active.place: number for number, active in enumerate(self.actives)}

    @cached_property
    def from_below(self) -> dict[Place, list[tuple[int, FurtherRows]]]:
        """By the place of an MLP, the SAEs of earlier layers that write to its output, and what."""
        found: dict[Place, list[tuple[int, FurtherRows]]] = defaultdict(list)
        for number, active in enumerate(self.actives):
            for further in active.further:
                found[further.place].append((number, further))
        return dict(found)

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """The range of each SAE's latents among all latents."""
        ends = torch.tensor([0, *(len(active.codes) for active in self.actives)]).cumsum(0)
        return tuple(slice(a, b) for a, b in pairwise(ends.tolist()))

    @cached_property
    def values(self) -> Float[Tensor, " latent"]:
        """The activations of all active latents, in order of SAE, position and number."""
        parts = [active.codes.values for active in self.actives]
        return torch.cat([self.record.embed.new_zeros(0), *parts])

    @cached_property
    def owner(self) -> Int[Tensor, " latent"]:
        """The SAE of each active latent."""
        sizes = torch.tensor([len(active.codes) for active in self.actives], dtype=torch.long)
        owner = torch.arange(len(sizes)).repeat_interleave(sizes)
        return owner.to(self.values.device)

    @cached_property
    def leaves(self) -> dict[str, slice]:
        """The range of each kind of leaf among all leaves; kinds with positions first, then biases.

        `embedding`, `position`, `error NAME`, `mlp LAYER`: one per position. `bias KIND LAYER` and
        `b_dec NAME`, `encoder NAME` (constants of its latents): one each, over all positions.
        """
        layers = range(len(self.weights.layers))
        placed = ["embedding", "position", *(f"error {a.name}" for a in self.actives)]
        placed += [f"mlp {i}" for i in layers if Place(i, "mlp") not in self.at_place]
        biases = [f"bias {kind} {i}" for i in layers for kind in ("ln1", "b_V", "b_O", "ln2")]
        biases += ["bias ln_final", self.logit_constant]
        biases += [f"{kind} {a.name}" for a in self.actives for kind in ("b_dec", "encoder")]
        sizes = [(name, self.n_pos) for name in placed] + [(name, 1) for name in biases]
        out, start = {}, 0
        for name, size in sizes:
            out[name] = slice(start, start + size)
            start += size
        return out

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return max(part.stop for part in self.leaves.values())

    def latent_index(self, sae: int, latent: int, position: int) -> int:
        """The index of an active latent among all latents.

        Raises:
            UsageError: the latent is not active there.
        """
        codes, applies = self.actives[sae].codes, self.actives[sae].applies
        found = ((codes.latent == latent) & (codes.row == position)).nonzero()
        if not len(found) and position < self.n_pos and not applies[position]:
            raise UsageError(
                f"{self.actives[sae].name} is not applied at position {position}: its "
                "training left out such tokens; choose another position."
            )
        if not len(found):
            active = codes.latent[codes.row == position].tolist()
            raise UsageError(
                f"Latent {latent} of {self.actives[sae].name} does not fire at position "
                f"{position}; those that do are {', '.join(map(str, active)) or 'none'}."
            )
        return self.spans[sae].start + int(found[0, 0])


def in_dtype(thing: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401 - whatever it is, it stays
    """A record such as `Frozen` or `Reading` with all its float64 numbers in another dtype."""
    if isinstance(thing, Tensor):
        return thing.to(dtype) if thing.dtype == torch.float64 else thing
    if thing is torch.float64:
        return dtype
    if isinstance(thing, tuple):
        return tuple(in_dtype(part, dtype) for part in thing)
    if not is_dataclass(thing):
        return thing
    changed = {f.name: in_dtype(getattr(thing, f.name), dtype) for f in fields(thing)}
    return type(thing)(**changed)


@torch.no_grad()
def freeze(lm: LanguageModel, hosts: Sequence[Host], tokens: Int[Tensor, " pos"]) -> Frozen:
    """The linear model of one prompt, in float64 on the model's device.

    Raises:
        UsageError: the architecture, an SAE's site or variant has no exact rule; the prompt
            is too long; or two SAEs share a name or a place.
    """
    ordered = _by_depth(by_layer(hosts), lm.info.n_layers)
    if len({d.name for d in ordered}) < len(ordered):
        raise UsageError("Two of the SAEs have the same name; give runs with different names.")
    weights = model_weights(lm)
    record = record_forward(lm, weights, tokens[None])
    check_whole(lm, weights, record)
    return _with_errors(
        Frozen(weights, record, tuple(_active(d, weights, record) for d in ordered))
    )


def _by_depth(hosts: Sequence[Host], n_layers: int) -> list[Host]:
    """The SAEs in the order in which the model computes them.

    Raises:
        UsageError: two have the same place, or a layer does not exist.
    """
    found: dict[Place, Host] = {}
    for host in hosts:
        place = host.place
        if place.layer > n_layers - (place.kind != "residual"):
            raise UsageError(
                f"{host.name} reads {host.reads}, but the model has layers 0 to {n_layers - 1}."
            )
        if place in found:
            raise UsageError(
                f"{found[place].name} and {host.name} stand at the same place, "
                f"{host.reads}; give one of them."
            )
        found[place] = host
    return [found[place] for place in sorted(found, key=lambda place: place.depth)]


def _active(host: Host, weights: ModelWeights, record: ForwardRecord) -> Active:
    """The SAE's latents; instead of its error, all that it writes."""
    x, target = _read_and_written(host, record)
    sae = host.sae
    if sae.W_dec.shape[1] != target.shape[-1]:
        raise UsageError(
            f"{host.name} reconstructs rows of width {sae.W_dec.shape[1]}, but "
            f"{host.writes} has {target.shape[-1]}; it is of another model."
        )
    norm = weights.layers[host.place.layer].ln2 if host.before_gain else None
    x = x if norm is None else _before_gain(norm, x, host)
    applies = host.domain.covers(record.tokens[0], x, target=target)
    codes = linearize(sae, x, applies)
    codes = codes if norm is None else codes.of_scaled(norm.gain, norm.bias)
    decoder = TakenRows(sae.W_dec, codes.latent, x.dtype)
    b_dec, skip = sae.resting(x).to(x.dtype), None
    if sae.W_skip is not None:
        W = sae.W_skip.to(x.dtype)
        b_dec = b_dec - sae.input_bias.to(x.dtype) @ W
        if norm is not None:
            W = W / norm.gain[:, None]
            b_dec, x = b_dec - norm.bias @ W, x * norm.gain + norm.bias
        skip = Skip(W, (x @ W) * applies[:, None], applies)
    b_dec, further = b_dec * applies[:, None], _further(host, record, codes.latent)
    facts = host.name, host.place, codes, decoder, b_dec
    return Active(*facts, target, applies, skip, host.before_post, further, host.layer_of)


def _before_gain(norm: Norm, x: Float[Tensor, "pos d_in"], host: Host) -> Float[Tensor, "pos d_in"]:
    """What a norm gave before its gain and bias."""
    if bool((norm.gain == 0).any()):
        raise UsageError(
            f"{host.reads} has {int((norm.gain == 0).sum())} coordinates with gain 0, which the "
            f"MLP does not read and {host.name} does, so no circuit has their part."
        )
    return (x - norm.bias) / norm.gain


def _further(
    host: Host, record: ForwardRecord, latents: Int[Tensor, " n"]
) -> tuple[FurtherRows, ...]:
    found = []
    for write in host.further:
        place = replace(host.place, layer=Site.of(write.site).layer or 0)
        layer = record.layers[place.layer]
        target = (layer.mlp_raw if host.before_post else layer.mlp_out)[0]
        rows = TakenRows(write.W_dec, latents, target.dtype, write.factor)
        found.append(FurtherRows(place, rows, write.lands(target)))
    return tuple(found)


def _with_errors(frozen: Frozen) -> Frozen:
    """The same with each SAE's error: what no latent writes, of this SAE or an earlier layer."""
    found = []
    for active in frozen.actives:
        own = replace(active, error=torch.zeros_like(active.error)).written()
        for number, further in frozen.from_below.get(active.place, ()):
            own = own + frozen.actives[number].written_further(further)
        found.append(replace(active, error=active.error - own))
    return replace(frozen, actives=tuple(found))


def _read_and_written(
    host: Host, record: ForwardRecord
) -> tuple[Float[Tensor, "pos d_in"], Float[Tensor, "pos d_out"]]:
    place = host.place
    if place.kind == "residual":
        last = place.layer == len(record.layers)
        x = record.resid_final if last else record.layers[place.layer].resid_pre
        return x[0], x[0]
    layer = record.layers[place.layer]
    if place.kind == "heads":
        return layer.z_cat[0], layer.z_cat[0]
    if place.kind == "attention":
        x = (layer.attn_raw if host.before_post else layer.attn_out)[0]
        return x, x
    return layer.mlp_in[0], (layer.mlp_raw if host.before_post else layer.mlp_out)[0]
