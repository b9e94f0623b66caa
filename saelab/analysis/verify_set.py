"""Finding any damage in a set of runs."""

from pathlib import Path

from saelab.activations.verify import Damage
from saelab.analysis.verify_run import RunCheck, verify_run
from saelab.evaluation.set_results import read_set_evaluation
from saelab.training.run_paths import is_run
from saelab.training.sets import SET, RunSet


def verify_set(path: Path | str) -> RunCheck:
    """Everything wrong with the set at `path`: its manifest, what was measured, and its runs.

    Beside what `verify_run` checks of each run, all runs must be there, of the set's model and at
    the sites that its manifest says.

    Where the manifest cannot be read, the runs of the directory are checked.
    """
    root, found_set = Path(path), list[RunSet]()
    check = RunCheck(root, n_files=1)
    whole = check.trying(root / SET, lambda: found_set.append(RunSet(root)))
    for file in sorted(root.glob("evaluation*.json")):
        check.n_files += 1
        check.trying(file, lambda file=file: read_set_evaluation(file))
    members = [member.name for runs in found_set for member in runs.manifest.members]
    for name in members if whole else sorted(place.name for place in root.iterdir()):
        if is_run(root / name):
            found = verify_run(root / name)
            check.n_files += found.n_files
            check.unsealed += [f"{name}/{file}" for file in found.unsealed]
            check.notes += found.notes
            check.damages += [Damage(f"{name}/{d.file}", d.problem) for d in found.damages]
    for runs in found_set:
        check.trying(root / SET, lambda runs=runs: runs.runs)
    return check
