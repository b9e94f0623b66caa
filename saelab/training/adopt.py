"""A run directory around an SAE that was trained elsewhere."""

from pathlib import Path

import torch

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE
from saelab.sae.storage import save_sae
from saelab.sae.variants import SAE_CONFIG
from saelab.training.config import TrainConfig
from saelab.training.directory import create
from saelab.training.run import Run
from saelab.training.source import Source


def adopt(
    sae: AbstractSAE, *, activations: str | Path, site: str, out: str | Path, origin: str
) -> Run:
    """Make `sae` a run at `out`, so that it can be evaluated, explained and browsed like any other.

    The store says which model and text the SAE belongs to; nothing is trained. `origin` says where
    the SAE came from and is recorded.

    Raises:
        UsageError: the store or the site does not exist, the SAE reads another width, or `out` is
            not empty.
    """
    directory = Path(out)
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty; choose another --out.")
    options = SAE_CONFIG.validate_python(sae.config.model_dump())
    config = TrainConfig(sae=options, activations=Path(activations), site=site, n_tokens=0)
    source = Source([config], torch.device("cpu"))
    if sae.is_transcoder:
        raise UsageError("The SAE is a transcoder, which cannot be adopted; train it here.")
    if sae.d_in != source.site.d_in:
        raise UsageError(
            f"The SAE reads rows of {sae.d_in} numbers, {site} has {source.site.d_in}; "
            "it was trained on another site or model."
        )
    create(config, directory, source, imported_from=origin)
    facts = {"total_variance": repr(source.site.total_variance), "site": site}
    save_sae(sae, directory / "weights.safetensors", facts)
    return Run(directory)
