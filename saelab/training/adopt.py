"""A run directory for an SAE that was trained elsewhere."""

from collections.abc import Mapping
from pathlib import Path

import torch

from saelab.activations.joint import JointSite
from saelab.config import UsageError
from saelab.formats.mapped import pieces
from saelab.lock import writing
from saelab.sae.base import AbstractSAE
from saelab.sae.topk import TopKConfig
from saelab.sae.variants import SAE_CONFIG
from saelab.training.config import TrainConfig
from saelab.training.directory import begun_import, run_record, taken, write_run
from saelab.training.run import Run
from saelab.training.source import Source


def adopt(
    sae: AbstractSAE,
    *,
    activations: str | Path,
    site: str,
    out: str | Path,
    origin: str | Mapping[str, object],
    target_site: str | None = None,
) -> Run:
    """Make `sae` a run at `out`, so that it can be evaluated, explained and browsed like any other.

    Nothing is trained. The store says which model and text the SAE belongs to. `origin`, which is
    recorded, says where the SAE came from, or holds further facts beside `imported_from`.
    `target_site` is the site that a transcoder reconstructs.

    Raises:
        UsageError: the store or the site does not exist, the SAE reads another width, or `out`
            holds something else than this import. The same import is finished if it was
            interrupted, and returned.
    """
    with writing(Path(out)):
        sites = site, target_site
        told = {"imported_from": origin} if isinstance(origin, str) else origin
        return _adopt(sae, Path(activations), sites, Path(out), told)


def mean_norm(activations: str | Path, site: str) -> float:
    """The mean norm of the rows of a site, massive activations left out; of up to 32,768 rows.

    Raises:
        UsageError: the store or the site does not exist, or its rows are zero.
    """
    # Any SAE's options do: only the rows matter.
    config = TrainConfig(
        sae=TopKConfig(d_sae=2, k=1), activations=Path(activations), site=site, n_tokens=0
    )
    size = float(Source([config], torch.device("cpu")).start_rows().float().norm(dim=1).mean())
    if not size > 0:
        raise UsageError(f"The rows of {site} are all zero, so they cannot be scaled.")
    return size


def _adopt(
    sae: AbstractSAE,
    activations: Path,
    sites: tuple[str, str | None],
    directory: Path,
    told: Mapping[str, object],
) -> Run:
    site, target_site = sites
    begun = begun_import(directory)
    config = _config(sae, activations, site, target_site)
    source = Source([config], torch.device("cpu"))
    for does, width, name, found in (
        ("reads", sae.d_in, site, source.site.d_in),
        ("writes", sae.d_out, config.written_site, source.target.d_in),
    ):
        if width != found:
            raise UsageError(
                f"The SAE {does} rows of {width} numbers, {name} has {found}; "
                "it was trained on another site or model."
            )
    if isinstance(source.site, JointSite) and isinstance(source.target, JointSite):
        # A store gives each of several sites unit variance.
        sae.read_sites_times(source.site.factors, source.target.factors)
    if begun is not None and begun.finished:
        if not _is_same(begun, sae, config, told):
            raise taken(directory)
        return begun
    if begun is not None:
        # The directory may hold remains of another SAE's import.
        (directory / "config.json").unlink()
    facts = {"total_variance": repr(source.target.total_variance), "site": site}
    facts["target_site"] = config.written_site
    record = run_record(source, **told)
    return write_run(directory, config, sae, record=record, facts=facts)


def _config(sae: AbstractSAE, activations: Path, site: str, target_site: str | None) -> TrainConfig:
    options = SAE_CONFIG.validate_python(sae.config.model_dump())
    if target_site == site:
        raise UsageError(f"{site} is what the SAE reads; name another target site, or none.")
    if sae.is_transcoder and target_site is None:
        raise UsageError("The SAE is a transcoder; name the target site that it reconstructs.")
    if target_site is not None and not sae.is_transcoder:
        raise UsageError(
            f"The SAE reconstructs what it reads, so {target_site} is no target of it."
        )
    return TrainConfig(
        sae=options,
        activations=activations,
        site=site,
        target_site=target_site,
        skip=sae.W_skip is not None,
        n_tokens=0,
        outliers="keep",  # Nothing says that whoever trained it left any out.
    )


def _is_same(run: Run, sae: AbstractSAE, config: TrainConfig, told: Mapping[str, object]) -> bool:
    """Whether a finished import is of this SAE from this origin."""
    if run.config != config or run.provenance().get("imported_from") != told.get("imported_from"):
        return False
    here, there = sae.state_dict(), run.load_sae().state_dict()
    return here.keys() == there.keys() and all(
        value.dtype == there[name].dtype
        and all(
            torch.equal(a.cpu().nan_to_num(), b.nan_to_num())
            for a, b in zip(pieces(value), pieces(there[name]), strict=True)
        )
        for name, value in here.items()
    )
