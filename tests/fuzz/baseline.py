"""Whole runs and a store to be damaged: small, made in seconds without a language model.

store/           two units of arrays with labels
runs/one/        a finished run with all that verbs and the browser add
runs/old/        the same as files without seals and indices, as earlier versions wrote them
runs/other/      a second run, to compare with
set/             a set whose runs are yet to be trained, and what was measured of them
half/            a training that was killed between two checkpoints
"""

import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

N_TOKENS = 6000


def make_baseline(root: Path) -> Path:
    """Write all of it below `root`."""
    from apps.circuit_cases import write_circuit
    from apps.conftest import D_SAE, VOCABULARY, feature_arrays, write_recovery, write_steering
    from apps.transport_cases import write_transport
    from feature_browser.pages.steering.experiment import Experiment
    from feature_browser.pages.steering.saved import save

    from saelab.activations.arrays import write_arrays
    from saelab.analysis.feature_file import write_features
    from saelab.analysis.notes import Notes
    from saelab.evaluation.arrays import evaluate_arrays
    from saelab.evaluation.options import EvaluateOptions
    from saelab.training.loop import train

    draw = np.random.default_rng(0)
    rows = draw.normal(size=(400, 8)).astype(np.float32)
    write_arrays(root / "store", {"x": rows}, labels={"up": rows[:, 0] > 0}, rows_per_unit=200)
    for name in ("one", "other"):
        path = root / "runs" / name
        run = train(config(root, seed=int(name == "other")), out=path, device="cpu")
        evaluate_arrays(run, EvaluateOptions(n_tokens=400), device="cpu")
        (root / "work").mkdir(exist_ok=True)
        facts = {"n_tokens": 2880, "reach": 16, "seed": 0, "sae_sha256": "ab" * 32}
        write_features(path / "features.h5", feature_arrays(root / "work", signed=False), facts)
        shutil.rmtree(root / "work")
        write_steering(path)
        write_recovery(path)
        write_circuit(path)
        write_transport(path, "early", "x", D_SAE)
        write_explanations(path)
        write_sharing(path, D_SAE)
        Notes(path).write(5, "label", "a label")
        Notes(path).write(5, "note", "a note")
        Notes(path).write(5, "list", "kept\n+\na comment")
        experiment = Experiment(prompt="a prompt", latents=(3,))
        save(path, "first", experiment, ("plain", "steered"))
    assert config(root).sae.d_sae == D_SAE
    assert VOCABULARY
    unsealed(root / "runs" / "one", root / "runs" / "old")
    half(root)
    run_set(root / "set")
    return root


def write_sharing(run: Path, n_latents: int) -> None:
    """The shares of two sites, from the first alone to the second alone."""
    from saelab.analysis.sharing.records import Sharing, save_sharing

    second = np.linspace(0, 1, n_latents, dtype=np.float32)
    norm = np.stack([1 - second, second], axis=1)
    fired = np.arange(n_latents)
    save_sharing(Sharing(("a", "b"), (0.1, 0.2), 90, fired, norm, norm + 0.5, norm + 0.5), run, {})


def write_explanations(run: Path) -> None:
    """A set of two explanations, with what is left of an unfinished part."""
    from saelab.analysis.explain.axbench import SteeredAnswer, SteeringTask, write_task
    from saelab.analysis.explain.judging import Merit
    from saelab.analysis.explain.records import Explanation, ExplanationSet
    from saelab.analysis.explain.scores import OWN, ExplanationScores, write_scores
    from saelab.analysis.explain.steered import SteeredTexts, write_steered
    from saelab.clients.ledger import Ledger
    from saelab.clients.question import Answer

    found = ExplanationSet(run / "explanations" / "m", "m", "file", "explain/1", "ab" * 32, 2, 90)
    found.by_latent = {5: Explanation("words", "2024-07-26", 40, 5), 7: Explanation("more", "x")}
    found.write()
    merit = {"detection": Merit(0.75, 0.8, 8), "fuzzing": Merit(0.5, None, 8)}
    scores = ExplanationScores(
        "j", by_source={OWN: {5: merit, 7: merit}, "empty": {5: merit}}, n_unread=1
    )
    write_scores(found, scores)
    write_steered(
        run / "explanations" / "steered.json",
        SteeredTexts("ab" * 32, {}, ["a", "b"], ["c", "d"], {5: (2.0, 1.0, ["e", "f"])}),
    )
    task = SteeringTask(["c"], ["a", "b"], [5], [SteeredAnswer(0, "latent", 0.4, 1, "t")], "ab")
    write_task(run / "explanations" / "axbench" / "texts.json", task)
    Ledger(found.path / "asked.jsonl").add([("explain/9/ab", Answer("names", 3, 1, (0.5, 0.5)))])


def config(root: Path, **changes: Any) -> Any:
    """What the runs are trained with."""
    from saelab.training.config import TrainConfig

    values = {
        "sae": {"variant": "topk", "d_sae": 32, "k": 4}, "activations": root / "store",
        "site": "x", "n_tokens": N_TOKENS, "batch_size": 100, "log_every": 5,
        "checkpoint_every": 10, "lr": 1e-2,
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def run_set(path: Path) -> None:
    """A set of one layer with figures of it."""
    from saelab.evaluation.set_results import AtOnce, MemberFigures, SetEvaluation
    from saelab.formats.json_file import write_sealed_json
    from saelab.training.sets import write_set

    sites = {"site": "blocks.0.ln2.hook_out", "target_site": "blocks.0.hook_mlp_out"}
    model = {"name": "m", "weights_digest": "w", "tokenizer_digest": "t", "n_layers": 1}
    write_set(path, "transcoders", model, {"mlp-0": config(path.parent, **sites)})
    member = MemberFigures("mlp-0", 0, "mlp", 32, 4.0, 0.1, 1, 0.02, None)
    whole = AtOnce("all", 1, 2.1, 3.0, 4.0, 0.9, 0.8, None, 0.95, 0.1, 0.8, 0.0)
    found = SetEvaluation("transcoders", "m", 100, 2.0, (member,), (whole,))
    write_sealed_json(path / "evaluation.json", {"made": {}, **found.values()})


def unsealed(source: Path, target: Path) -> None:
    """The run at `source` as an earlier version would have written it."""
    from fuzz.hdf5_damage import plain_copy
    from safetensors import safe_open
    from safetensors.numpy import save_file

    shutil.copytree(source, target)
    for path in target.rglob("*.json"):
        values = json.loads(path.read_bytes())
        values.pop("sha256", None)
        path.write_text(json.dumps(values, indent=2) + "\n")
    for path in target.rglob("*.h5"):
        plain_copy(source / path.relative_to(target), path)
    with safe_open(target / "weights.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = {name: text for name, text in file.metadata().items() if name != "seal"}
    save_file(tensors, target / "weights.safetensors", metadata=meta)


def half(root: Path) -> None:
    """A training killed in its 31st step, with checkpoints of earlier ones."""
    in_child(lambda: _killed(root))
    assert list((root / "half").glob("checkpoints/step_*"))


def _killed(root: Path) -> None:
    from saelab.training import metrics
    from saelab.training.loop import train

    write, seen = metrics.MetricsLog.write, []

    def killing(self: Any, line: Any) -> None:
        write(self, line)
        seen.append(line)
        if len(seen) == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    metrics.MetricsLog.write = killing  # pyrefly: ignore[bad-assignment]
    train(config(root), out=root / "half", device="cpu")


def in_child(work: Callable[[], object]) -> int:
    """Do `work` in a fork of this process and wait; returns its status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - told here, since the parent's handlers are not ours
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]
