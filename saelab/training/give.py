"""A run's SAE in the neutral form of other tools' files: the opposite of `adopt`."""

from dataclasses import replace
from pathlib import Path

from saelab.sae.interop.convert import to_foreign
from saelab.sae.interop.foreign import ForeignSAE
from saelab.training.given_text import trained_on
from saelab.training.run import Run


def give(run: Run) -> ForeignSAE:
    """The run's SAE, with its sites, its model's name and what its text was.

    Raises:
        UsageError: the run has no weights, or no other tool has this variant.
    """
    model = run.provenance()["model"]
    return replace(
        to_foreign(run.load_sae()),
        hook=run.options["site"],
        hook_out=run.options.get("target_site"),
        model=None if model is None else Path(model["name"]).name,
        text=trained_on(run),
    )
