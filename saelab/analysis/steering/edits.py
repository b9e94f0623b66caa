"""The splice: changes of latents, or of a direction, as edits of a model's site."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.records import Features, features_file
from saelab.analysis.steering.interventions import Intervention, check_alike
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.edits import replace_rows
from saelab.lm.protocol import Edit
from saelab.sae.decoder import dtype_of
from saelab.training.run import Run
from saelab.types import SparseCodes


def with_maxima(host: Host) -> Host:
    """The host with its latents' largest |activations|, if its run has features.

    Changes in the unit `latent_max` need them. Of latents without features they are NaN.

    Raises:
        UsageError: the features are damaged, or of other weights; or the SAE reads several sites.
    """
    if (n := len(host.sae.widths)) > 1:
        raise UsageError(
            f"{host.name} reads {n} sites, and steering changes the model at one; steer with an "
            "SAE of one site."
        )
    if host.run is None or not features_file(host.run.path).is_file():
        return host
    features = Features.of(host.run.path)
    check_weights(features.file, host.run)
    maxima = torch.full((host.sae.d_sae,), float("nan"))
    maxima[list(features.latents)] = torch.tensor(features.file["latent/max"])
    return replace(host, maxima=maxima.to(host.lm.device))


def latent_edits(
    host: Host,
    changes: Sequence[Intervention],
    mask: Bool[Tensor, "batch pos"],
    atoms: Float[Tensor, "n d_out"] | None = None,
) -> dict[str, Edit]:
    """The edits that make `changes` at the masked positions: one for all contexts, or one each.

    `atoms` are what a unit of the latents 0, 1, ... writes (default: the SAE's decoder rows), to
    steer with other directions as with latents.

    Other positions stay bit-equal. So do rows whose change is zero while the error is kept, and
    rows whose norm training left out. Codes are those of what the edited model computes at
    `host.reads`.

    Raises:
        UsageError: a latent does not exist, has no recorded maximum although the unit is
            `latent_max`, or the changes are not of one kind.
    """
    seen: list[Tensor] = []
    if not host.is_transcoder:
        return {host.writes: _edit(host, changes, mask, seen, atoms)}
    return {host.reads: _noted(seen), host.writes: _edit(host, changes, mask, seen, atoms)}


def _edit(
    host: Host,
    changes: Sequence[Intervention],
    mask: Bool[Tensor, "batch pos"],
    seen: list[Tensor],
    atoms: Float[Tensor, "n d_out"] | None,
) -> Edit:
    """The edit at the written site; `seen` holds what is read at another site."""
    atoms = host.sae.W_dec if atoms is None else atoms
    latents, amounts = _checked(host, changes, len(atoms))
    first = changes[0]

    def edit(value: Float[Tensor, "batch pos d_out"]) -> Float[Tensor, "batch pos d_out"]:
        read = seen[0] if seen else value
        where = host.applied(mask, read, value)
        context, written = where.nonzero()[:, 0], value[where]
        if not len(context):
            return value
        row = context if len(changes) > 1 else torch.zeros_like(context)
        x = read[where].to(dtype_of(host.sae))
        codes = host.sae.encode(x)
        delta = _delta(host, first, codes, latents[row], amounts[row, None])
        added = einsum(
            delta, atoms[latents[row]].to(delta.dtype), "row n, row n d_out -> row d_out"
        )
        base = written if first.error == "keep" else host.sae.decode(codes, x)
        return replace_rows(where, base + added)(value)

    return edit


def direction_edit(
    host: Host,
    direction: Float[Tensor, " d_in"],
    lengths: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch pos"],
) -> Edit:
    """The edit that adds `direction`, with a length per context, at the masked positions.

    It acts where a change of the SAE's latents would (for an SAE that writes the site it reads), so
    that the two can be compared.
    """
    unit = torch.nn.functional.normalize(direction, dim=0)

    def edit(value: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        where = mask if host.is_transcoder else host.applied(mask, value, value)
        context = where.nonzero()[:, 0]
        return replace_rows(where, value[where] + lengths[context, None] * unit)(value)

    return edit


def _checked(
    host: Host, changes: Sequence[Intervention], n: int
) -> tuple[Int[Tensor, "n latent"], Float[Tensor, " n"]]:
    check_alike(changes)
    latents = torch.tensor([c.latents for c in changes], device=host.lm.device)
    if (top := int(latents.max())) >= n:
        raise UsageError(f"There is no latent {top}; the SAE has 0 to {n - 1}.")
    if changes[0].unit == "latent_max" and changes[0].op in ("add", "clamp"):
        _check_maxima(host, latents)
    amounts = torch.tensor([c.amount for c in changes], dtype=dtype_of(host.sae))
    return latents, amounts.to(host.lm.device)


def _check_maxima(host: Host, latents: Int[Tensor, "n latent"]) -> None:
    if host.maxima is None:
        raise UsageError(
            "The unit latent_max needs each latent's maximum in features.h5; run `saelab "
            "features` first, or use a_max."
        )
    if len(unknown := latents[host.maxima[latents].isnan()]):
        named = " ".join(str(latent) for latent in unknown.unique().tolist())
        raise UsageError(
            f"The unit latent_max needs the maximum of latent {int(unknown[0])}, of which no "
            f"features were collected; `saelab features RUN --latents {named}` adds them, or use "
            "a_max."
        )
    silent = latents[host.maxima[latents] == 0]
    if len(silent):
        raise UsageError(
            f"Latent {int(silent[0])} never fired while features.h5 was collected, so it has "
            "no maximum; use the unit a_max."
        )


def _delta(
    host: Host,
    change: Intervention,
    codes: SparseCodes,
    latents: Int[Tensor, "row latent"],
    amount: Float[Tensor, "row 1"],
) -> Float[Tensor, "row latent"]:
    """The change of each code."""
    here = codes_at(codes, latents)
    match change.op:
        case "add":
            return amount * _unit(host, change, codes, latents)
        case "clamp":
            return amount * _unit(host, change, codes, latents) - here
        case "scale":
            return (amount - 1) * here
        case "ablate":
            return -here


def _unit(
    host: Host, change: Intervention, codes: SparseCodes, latents: Int[Tensor, "row latent"]
) -> Float[Tensor, "row latent"]:
    if change.unit == "a_max":
        return a_max(codes)[:, None].expand(latents.shape)
    if change.unit == "latent_max" and host.maxima is not None:
        return host.maxima[latents].to(codes.values.dtype)
    return torch.ones_like(latents, dtype=codes.values.dtype)


def _noted(seen: list[Tensor]) -> Edit:
    """Changes nothing, but keeps the value for the later edit."""

    def edit(value: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        seen[:] = [value]
        return value

    return edit


def features_of(run: Run) -> FeatureFile:
    """The run's features.h5.

    Raises:
        UsageError: it is missing, damaged, or was collected with other weights.
    """
    file = FeatureFile(run.features_path)
    check_weights(file, run)
    return file


def check_weights(file: FeatureFile, run: Run) -> None:
    """Raises UsageError if features were collected with other weights than the run has."""
    if file.facts.get("sae_sha256") != run.weights_sha256:
        raise UsageError(
            f"{file.path} was collected with other weights than {run.weights}; run `saelab "
            "features` again."
        )


def codes_at(codes: SparseCodes, latents: Int[Tensor, "row latent"]) -> Float[Tensor, "row latent"]:
    """The codes of a few latents in each row; zero where a latent does not fire."""
    codes = codes.rectangular()
    mine = codes.indices[:, :, None] == latents[:, None, :]
    return (codes.values[:, :, None] * mine).sum(dim=1)


def a_max(codes: SparseCodes) -> Float[Tensor, " row"]:
    """The largest |activation| of any latent in each row; 0 if none fires."""
    values = codes.rectangular().values.abs()
    # Codes of rows in which nothing fires may have no columns at all.
    return torch.nn.functional.pad(values, (0, 1)).amax(dim=1)
