"""What reads each file of a run or a store: verbs of the command line, the library, the browser."""

import contextlib
import io
import logging
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

APP = Path(__file__).parents[2] / "apps" / "feature_browser" / "server" / "app.py"


@dataclass(frozen=True)
class Finding:
    """What a reader made of a file.

    Attributes:
        outcome: `read`, `said` (refused with one sentence), or what must not be: `traceback`,
            `not one sentence`, `exit code`.
    """

    reader: str
    outcome: str
    text: str = ""

    @property
    def bad(self) -> bool:
        """Whether this must not be."""
        return self.outcome not in ("read", "said")


Said = tuple[object, tuple[int, ...]]
"""An exit code, and which ones beside 0 say that all was read."""
Reader = Callable[[Path], Said | None]
"""Reads what belongs to the run (or store) at a path, below the root that holds `runs`."""


def told(name: str, reader: Reader, path: Path) -> Finding:
    """The finding of one reader on one run or store."""
    from saelab.config import UsageError

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            said = reader(path)
    except UsageError as error:
        return _sentence(name, str(error))
    except SystemExit as ended:
        said = ended.code, ()
    except BaseException:  # noqa: BLE001 - any is a finding
        return Finding(name, "traceback", _last_lines(traceback.format_exc()))
    if said is None:
        return Finding(name, "read")
    return _exit(name, *said, err.getvalue())


def _exit(name: str, code: object, allowed: tuple[int, ...], err: str) -> Finding:
    """Of a verb: 2 for bad input, 1 where the system refuses to write; both with one sentence."""
    if "Traceback" in err or code not in (0, 1, 2):
        return Finding(name, "exit code", f"{code}: {_last_lines(err)}")
    if code == 0 or code in allowed:
        return Finding(name, "read")
    # What is said before, of memory and time, is no complaint.
    *before, last = err.strip().splitlines() or [""]
    complaints = [line for line in before if line.startswith("saelab ")]
    return _sentence(name, "\n".join([*complaints, last]))


def _sentence(name: str, text: str) -> Finding:
    one = bool(text) and "\n" not in text and len(text) < 1200
    return Finding(name, "said" if one else "not one sentence", text[:600])


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-6:])[-900:]


def _verb(*words: object, allowed: tuple[int, ...] = ()) -> Said:
    from saelab.cli import main

    return main([str(word) for word in words]), allowed


# Verbs


def show(path: Path) -> Said:
    return _verb("show", path)


def show_json(path: Path) -> Said:
    return _verb("show", path, "--json")


def verify(path: Path) -> Said:
    return _verb("verify", path, allowed=(1,))


def export(path: Path) -> Said:
    return _verb("export", path, "--out", path.parent.parent / "exported")


def train(path: Path, store: Path | None = None) -> Said:
    """The command that made the run, once more."""
    from fuzz.baseline import N_TOKENS

    return _verb(
        "train", "topk", "--activations", store or begun_from[-1], "--site", "x", "--d-sae", 32,
        "--k", 4, "--n-tokens", N_TOKENS, "--batch-size", 100, "--log-every", 5,
        "--checkpoint-every", 10, "--lr", "1e-2", "--out", path, "--device", "cpu",
    )  # fmt: skip


def train_anew(path: Path) -> Said:
    """A new training from the store at `path`."""
    return train(path.parent / "new", path)


begun_from: list[Path] = []
"""The store that the runs were trained from, which is left whole."""

# The library


def load(path: Path) -> None:
    """What evaluate, features, steer and circuit read before they begin."""
    from saelab.training.run import Run

    run = Run(path)
    _ = run.config, run.domain, run.provenance().get("model")
    if run.provenance().get("model") is not None:
        run.model()
    run.load_sae()


def found(path: Path) -> None:
    from saelab.training.find import find_runs

    assert list(find_runs(path.parent))


def evaluations(path: Path) -> None:
    from saelab.training.run import Run

    run = Run(path)
    for file in sorted((path / "evaluation").glob("*.json")):
        run.evaluation(file.stem)


def features(path: Path) -> None:
    from saelab.analysis.records import Features

    read = Features(path)
    read.table()
    for latent in (0, 5, len(read) - 1):
        record = read[latent]
        for kind in record.examples:
            _ = [list(example.tokens) for example in record.examples[kind]]
        record.figure()
    read.latents_on(5)


def sharing(path: Path) -> None:
    from saelab.analysis.sharing.records import load_sharing

    load_sharing(path).summary()


def steering(path: Path) -> None:
    from saelab.analysis.steering.records import load_steering_scores

    scores = load_steering_scores(path)
    scores.summary()
    for row in scores.best(3):
        scores.record(row)


def transports(path: Path) -> None:
    from saelab.analysis.transport.records import load_transport

    for one in load_transport(path):
        one.summary()
        one.record(3)
        one.operator(2)
        one.figure()


def circuits(path: Path) -> None:
    from saelab.analysis.circuits.graph_file import load_graph_hdf5, read_graph_summary

    for file in sorted((path / "circuits").glob("*.h5")):
        read_graph_summary(file)
        load_graph_hdf5(file).row_sums()


def explanations(path: Path) -> None:
    from saelab.analysis.explain.axbench import read_task
    from saelab.analysis.explain.records import explanation_sets
    from saelab.analysis.explain.scores import read_scores
    from saelab.analysis.explain.steered import read_steered
    from saelab.analysis.names_file import names_of, written_names
    from saelab.clients.ledger import Ledger

    _ = [list(found.by_latent) for found in explanation_sets(path)]
    for file in path.glob("explanations/*/scores_*.json"):
        read_scores(file).summary()
    Ledger(path / "explanations" / "m" / "asked.jsonl")
    read_steered(path / "explanations" / "steered.json")
    read_task(path / "explanations" / "axbench" / "texts.json").questions()
    written_names(names_of(path), "csv")


def store(path: Path) -> None:
    from saelab.activations.store import ActivationStore

    read = ActivationStore(path)
    site = read.site("x")
    _ = site.mean, site.total_variance, [read.tokens(unit) for unit in read.units]


def set_measured(path: Path) -> None:
    from saelab.evaluation.set_results import load_set_evaluation, set_sections
    from saelab.figures.evaluation import set_figure
    from saelab.training.sets import RunSet

    _ = RunSet(path).finished
    if (found := load_set_evaluation(path)) is not None:
        set_sections(found)
        set_figure(found)


# The browser


def card(path: Path) -> None:
    """The catalogue, which no run may take down: the other runs are still there."""
    from feature_browser.data.catalogue import read_catalogue

    found = read_catalogue(path.parent)
    assert {"one", "other", "old"} - {path.name} <= found.runs.keys(), found.damaged
    told = {**found.runs, **found.damaged}
    assert path.name in told
    assert all("\n" not in sentence for sentence in found.damaged.values())


def notes(path: Path) -> None:
    from saelab.analysis.notes import Notes

    read = Notes(path)
    read.version()
    read.all()
    read.lists()
    read.history(5)
    read.write(7, "label", "new")
    read.write(7, "list", "kept\n<5")


def experiments(path: Path) -> None:
    from feature_browser.pages.steering.saved import shelf

    assert not any("\n" in problem for problem in shelf(path).problems)


def route(path: Path) -> None:
    """The page of a latent as the canvas asks for it."""
    from feature_browser.pages.latent import view as routes
    from starlette.requests import Request

    sys.argv = ["app.py", str(path.parent)]
    query = f"run={path.name}&latent=5".encode()
    answer = routes.latent_page(Request({"type": "http", "query_string": query, "headers": []}))
    assert answer.status_code in (200, 404)


def page(view: str, **address: str) -> Reader:
    """A page of the browser, drawn as a whole."""

    def draw(path: Path) -> None:
        from streamlit.testing.v1 import AppTest

        logging.disable(logging.CRITICAL)
        sys.argv = ["app.py", str(path.parent)]
        app = AppTest.from_file(str(APP), default_timeout=60)
        for name, value in {"view": view, "run": path.name, **address}.items():
            app.query_params[name] = value
        app.run()
        if app.exception:
            shown = app.exception[0]
            raise RuntimeError(f"{shown.message}\n" + "\n".join(shown.stack_trace[-4:]))
        assert app.get("bidi_component"), "nothing is drawn"

    return draw


RUNS, LATENT, LATENTS = page("runs"), page("latent", latent="5"), page("latents")
KNOWN, HEALTH, TRAINING = page("known"), page("health"), page("training")
STEERING, COMPARE = page("steering"), page("compare", other="other")
TRANSPORT = page("transport")
CIRCUIT = page("circuit", graph="b-to-her")

READERS: dict[str, dict[str, Reader]] = {
    "config.json": {"show": show, "load": load, "find_runs": found, "train again": train,
                    "catalogue": card, "page runs": RUNS, "page training": TRAINING},
    "provenance.json": {"show": show_json, "load": load, "find_runs": found, "catalogue": card,
                        "train again": train, "page runs": RUNS, "page latent": LATENT},
    "weights.safetensors": {"load": load, "show": show, "export": export, "catalogue": card,
                            "page compare": COMPARE, "page health": HEALTH, "train again": train},
    "metrics.jsonl": {"show": show, "page training": TRAINING},
    "evaluation/*": {"evaluation": evaluations, "show": show_json, "catalogue": card,
                     "page runs": RUNS, "page known": KNOWN, "page health": HEALTH,
                     "page latent": LATENT, "page steering": STEERING, "page latents": LATENTS,
                     "page scoreboard": page("scoreboard")},
    "features.h5": {"features": features, "page latent": LATENT, "page latents": LATENTS,
                    "page health": HEALTH, "page known": KNOWN, "route": route},
    "steering.h5": {"steering": steering, "page steering": STEERING, "page latent": LATENT},
    "transport/*": {"transports": transports, "page transport": TRANSPORT},
    "sharing.h5": {"sharing": sharing, "page shared": page("shared")},
    "circuits/*": {"circuits": circuits, "page circuit": CIRCUIT, "page latent": LATENT},
    "explanations/*": {"explanations": explanations, "page latent": LATENT,
                       "page latents": LATENTS},
    "notes.sqlite": {"notes": notes, "page latent": LATENT, "page latents": LATENTS,
                     "page lists": page("lists")},
    "experiments/*": {"experiments": experiments},
    "checkpoints/*": {"train": train, "show": show},
}  # fmt: skip
"""By the file's name in a run."""
OF_EVERY_RUN: dict[str, Reader] = {"verify": verify}
OF_A_STORE: dict[str, Reader] = {
    "verify": verify, "show": show, "load": store, "train": train_anew,
}  # fmt: skip


OF_A_SET: dict[str, Reader] = {
    "verify": verify, "show": show_json, "measured": set_measured,
}  # fmt: skip


def readers_of(file: Path) -> tuple[Path, dict[str, Reader]]:
    """The run or store that a file (below the root) belongs to, and what reads it."""
    if file.parts[0] == "store":
        return Path("store"), OF_A_STORE
    if file.parts[0] == "set":
        return Path("set"), OF_A_SET
    owner = Path(*file.parts[: 2 if file.parts[0] == "runs" else 1])
    inside = str(file.relative_to(owner))
    if file.parts[0] == "half":
        return owner, {"train": train, "show": show, **OF_EVERY_RUN}
    named: dict[str, Reader] = next(
        (r for name, r in READERS.items() if fnmatch(inside, name)), {"show": show}
    )
    # A process of its own reads each HDF5 file without an index: not for every other file, too.
    slow = owner.name == "old" and file.suffix != ".h5"
    return owner, named if slow else named | OF_EVERY_RUN


def findings(root: Path, file: Path, only: set[str] | None = None) -> Iterator[Finding]:
    """What every reader, or those of some names, make of the file at `root`/`file`."""
    owner, readers = readers_of(file)
    for name, reader in readers.items():
        if only is None or name in only:
            yield told(name, reader, root / owner)
            for made in ("exported", "new"):
                shutil.rmtree(root / made, ignore_errors=True)
