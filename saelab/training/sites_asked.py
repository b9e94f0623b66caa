"""Which sites an SAE is asked to read and to reconstruct, and whether it can."""

from typing import Protocol, runtime_checkable

from saelab.config import UsageError
from saelab.sae.base import AbstractSAEConfig
from saelab.sae.transcoder import check_transcoder


@runtime_checkable
class SitesAsked(Protocol):
    """The options of a training that say so; see `TrainConfig`."""

    @property
    def sae(self) -> AbstractSAEConfig:
        """The variant and its options."""
        ...

    @property
    def site(self) -> str:
        """What is read."""
        ...

    @property
    def target_site(self) -> str | None:
        """What is reconstructed if not `site`."""
        ...

    @property
    def skip(self) -> bool:
        """Whether it has a skip connection."""
        ...

    @property
    def objective(self) -> str:
        """What the loss measures."""
        ...

    @property
    def live(self) -> bool:
        """Whether activations come from the running model."""
        ...

    @property
    def n_sites(self) -> int:
        """Number of sites that are read side by side."""
        ...

    @property
    def runs_model(self) -> bool:
        """Whether the loss runs the language model."""
        ...


def check_sites(asked: SitesAsked) -> None:
    """Refuse sites that the SAE cannot read or reconstruct.

    Raises:
        UsageError: the message names the options.
    """
    if asked.n_sites > 1:
        _check_joint(asked)
    if asked.target_site is None:
        if asked.skip:
            raise UsageError(
                "--skip needs --target-site: past an SAE that reconstructs what it reads, a "
                "skip connection would carry everything."
            )
        return
    if asked.target_site == asked.site:
        raise UsageError(
            f"--target-site {asked.target_site} is what the SAE reads; leave it out, or name "
            "another site."
        )
    check_transcoder(asked.sae)
    if asked.objective != "local":
        raise UsageError(
            f"--objective {asked.objective} is for an SAE that reconstructs what it reads; a "
            "transcoder trains with --objective local."
        )


def _check_joint(asked: SitesAsked) -> None:
    """Refuse what an SAE of several sites cannot do."""
    if problem := asked.sae.joint_problem:
        raise UsageError(
            f"A {asked.sae.variant} SAE cannot read {asked.n_sites} sites: {problem}; take "
            "crosscoder, or name one --site and no --beside."
        )
    given = {
        "--target-site": asked.target_site is not None,
        "--live": asked.live,
        f"--objective {asked.objective}": asked.runs_model,
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise UsageError(
            f"{name} is for an SAE of one site, and this one reads {asked.n_sites}; leave it out."
        )
