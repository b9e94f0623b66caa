"""Finding any damage in a set of runs."""

from pathlib import Path

from saelab.activations.verify import Damage
from saelab.analysis.verify_run import RunCheck, verify_run
from saelab.evaluation.set_results import read_set_evaluation
from saelab.training.run import is_run
from saelab.training.sets import SET, RunSet


def verify_set(path: Path | str) -> RunCheck:
    """Everything wrong with the set at `path`: its manifest, what was measured, and its runs.

    Beside what `verify_run` checks of each run, all runs must be there, of the set's model and at
    the sites that its manifest says.

    Raises:
        UsageError: set.json cannot be read.
    """
    root = Path(path)
    runs, check = RunSet(root), RunCheck(root)
    check.n_files += 1
    for file in sorted(root.glob("evaluation*.json")):
        check.n_files += 1
        check.trying(file, lambda file=file: read_set_evaluation(file))
    for member in runs.manifest.members:
        place = root / member.name
        if is_run(place):
            found = verify_run(place)
            check.n_files += found.n_files
            check.unsealed += [f"{member.name}/{name}" for name in found.unsealed]
            check.notes += found.notes
            check.damages += [Damage(f"{member.name}/{d.file}", d.problem) for d in found.damages]
    check.trying(root / SET, lambda: runs.runs)
    return check
