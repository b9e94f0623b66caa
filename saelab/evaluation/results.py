"""What an evaluation found, and the files it is kept in."""

from dataclasses import asdict, dataclass, field

from saelab.activations.corpus import Corpus
from saelab.evaluation.ablation import AblationSparsity
from saelab.evaluation.absorption_tasks import Absorption
from saelab.evaluation.density import Density
from saelab.evaluation.dictionary import DictionaryFigures
from saelab.evaluation.mdl import DescriptionLength
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.other_text import saved_as
from saelab.evaluation.probing import SparseProbing
from saelab.evaluation.recovery import RecoveryResult
from saelab.evaluation.uniformity import Uniformity
from saelab.files import sha256_file
from saelab.provenance import provenance
from saelab.training.run import Run
from saelab.types import Figures

PLAIN = ("reconstruction", "downstream", "recovery")
"""Files that hold their figures alone; how they were made stands in summary.json."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, all of it on text that no training saw.

    Attributes:
        reconstruction: see `Reconstruction.results`.
        downstream: see `Downstream.results`, and for the full suite `against_mean`; empty where
            nothing can be spliced in.
        recovery: known features against latents; None where the text has no labels.
        density, dictionary: see these classes.
        description_length, uniformity, probing, absorption, ablation: of the full suite; None where
            it was not asked for, or where `skipped` says why.
        skipped: by name, one sentence for everything that could not be measured.
        seconds: by name, how long each part took.
    """

    reconstruction: Figures
    downstream: Figures
    recovery: RecoveryResult | None
    density: Density
    dictionary: DictionaryFigures
    description_length: DescriptionLength | None = None
    uniformity: Uniformity | None = None
    probing: SparseProbing | None = None
    absorption: Absorption | None = None
    ablation: AblationSparsity | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def save_evaluation(
    run: Run, result: Evaluation, options: EvaluateOptions, *, corpus: Corpus | None, device: str
) -> None:
    """Write `evaluation/NAME.json` in the run for everything that was measured.

    Of another text than the run's own, it is `evaluation/TEXT/NAME.json`, see `saved_as`.
    summary.json says how this evaluation was made, what it skipped and how long it took. Files that
    a later evaluation of fewer things leaves as they are say by themselves how they were made.
    """
    made = {
        "options": options.model_dump(mode="json"),
        "corpus": None if corpus is None else dict(corpus.facts),
        "sae_sha256": sha256_file(run.weights),
        "provenance": provenance(device=device),
    }
    values = asdict(result)
    skipped, seconds = values.pop("skipped"), values.pop("seconds")
    files = {name: figures for name, figures in values.items() if figures}
    if corpus is not None and "recovery" in files:
        for feature in files["recovery"]["features"]:
            feature["description"] = corpus.label_descriptions.get(feature["label"], "")
    text = None if corpus is None else saved_as(run, corpus)
    for name, figures in files.items():
        told = figures if name in PLAIN and text is None else {"made": made, **figures}
        run.save_evaluation(name, told, text=text)
    summary = {"made": made, "files": list(files), "skipped": skipped, "seconds": seconds}
    run.save_evaluation("summary", summary, text=text)
