"""What was measured of a run, in the files that SAEBench's own code writes (version 0.6).

DIRECTORY/TYPE/RUN_custom_sae_eval_results.json, with TYPE one of core, sparse_probing,
sparse_probing_sae_probes, absorption_first_letter, tpp, scr, ravel and unlearning; SAEBench's plots
read these. -1 is SAEBench's mark for a figure of core that was not measured. Fields that may be
absent are left out.
"""

import statistics
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.console import note
from saelab.evaluation.measurement import measurements
from saelab.evaluation.tasks.letters import LETTERS, LETTERS_SAEBENCH
from saelab.evaluation.tasks.saebench_changes import CHANGES, Values
from saelab.evaluation.tasks.sparse_probing import KS, ProbedTask
from saelab.files import atomic_write_json, make_directory
from saelab.provenance import commit, version_of
from saelab.sites import Site
from saelab.training.run import Run

RELEASE_ID = "custom_sae"
SHARED_KS = tuple(k for k in KS if k in (1, 2, 5, 10, 20, 50, 100))
"""Those for which SAEBench has a field."""
UNKNOWN = -1.0


def write_saebench(run: Run, directory: Path) -> list[Path]:
    """Write a file for every kind of evaluation that the run has; returns their paths.

    Raises:
        UsageError: the run has none.
    """
    found = {kind: values for kind, values in _evaluations(run) if values is not None}
    if not found:
        raise UsageError(
            f"{run.path} has nothing for --saebench yet; saelab evaluate measures core, and saelab "
            "tasks the others."
        )
    paths = []
    for kind, values in found.items():
        path = directory / kind / f"{run.name}_{RELEASE_ID}_eval_results.json".replace("/", "_")
        make_directory(path.parent)
        atomic_write_json(path, _whole(run, kind, **values))
        paths.append(path)
    return paths


def _evaluations(run: Run) -> Iterator[tuple[str, Values | None]]:
    model = str(run.model()["name"]) if not run.on_arrays else ""
    results = {}
    for name in ("reconstruction", "downstream", "density", "task_probing", LETTERS_SAEBENCH.name):
        results[name] = _read(run, name)
    yield "core", _core(model, run, results)
    for kind, rules in (
        ("sparse_probing", "saebench"),
        ("sparse_probing_sae_probes", "sae-probes"),
    ):
        tasks = {} if results["task_probing"] is None else results["task_probing"].tasks
        own = {name: task for name, task in tasks.items() if task.setting["rules"] == rules}
        yield kind, _probing(model, own, packaged=rules == "sae-probes") if own else None
    if results[LETTERS_SAEBENCH.name] is None and run.evaluation(LETTERS.name) is not None:
        note(
            "First-letter absorption by saelab's own rules is left out, since it is not to be "
            "compared with SAEBench's; saelab tasks RUN --letters --rules saebench measures that."
        )
    yield "absorption_first_letter", _absorption(model, results[LETTERS_SAEBENCH.name])
    for kind, values in CHANGES.items():
        yield kind, values(model, _read(run, f"task_{kind}"))


def _read(run: Run, name: str) -> Any | None:  # noqa: ANN401 - the measurement's own result
    values = run.evaluation(name)
    if values is None:
        return None
    return measurements()[name].read(values, f"evaluation/{name}.json of {run.path}")


def _whole(
    run: Run,
    kind: str,
    *,
    config: Values,
    metrics: Values,
    details: list[Values],
    unstructured: Values | None = None,
) -> Values:
    options = run.options
    sae = options["sae"]
    identity = f"{run.path.resolve()} {kind} {metrics}"
    return {
        "eval_type_id": kind,
        "eval_config": config,
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_URL, identity)),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "sae_bench_commit_hash": f"saelab {version_of('saelab') or commit()}",
        "sae_lens_id": RELEASE_ID,
        "sae_lens_release_id": run.name,
        "sae_lens_version": None,
        "sae_cfg_dict": {
            "architecture": sae["variant"],
            "d_in": run.load_sae("cpu").d_in,
            "d_sae": sae["d_sae"],
            "hook_name": options["site"],
            "hook_layer": Site.of(run.config.site).layer,
            "model_name": str(run.model()["name"]) if not run.on_arrays else None,
            "training_tokens": options["n_tokens"],
        },
        "eval_result_unstructured": unstructured,
    }


def _core(model: str, run: Run, results: Mapping[str, Any]) -> Values | None:
    rebuilt, downstream, density = (
        results[name] for name in ("reconstruction", "downstream", "density")
    )
    if rebuilt is None:
        return None
    told = downstream or {}
    n = int(rebuilt["n_tokens"])
    metrics = {
        "model_behavior_preservation": {
            "kl_div_score": UNKNOWN,
            "kl_div_with_ablation": UNKNOWN,
            "kl_div_with_sae": told.get("kl", UNKNOWN),
        },
        "model_performance_preservation": {
            "ce_loss_score": told.get("ce_recovered", UNKNOWN),
            "ce_loss_with_ablation": told.get("ce_zero", UNKNOWN),
            "ce_loss_with_sae": told.get("ce_spliced", UNKNOWN),
            "ce_loss_without_sae": told.get("ce_plain", UNKNOWN),
        },
        "reconstruction_quality": {
            "explained_variance": 1 - rebuilt["fvu"],
            "explained_variance_legacy": UNKNOWN,
            "mse": rebuilt["mse_sum"] / run.load_sae("cpu").d_out,
            "cossim": rebuilt["cosine"],
        },
        "shrinkage": dict.fromkeys(SHRINKAGE, UNKNOWN),
        "sparsity": {"l0": rebuilt["l0"], "l1": UNKNOWN},
        "token_stats": {
            "total_tokens_eval_reconstruction": n if told else 0,
            "total_tokens_eval_sparsity_variance": n,
        },
        "misc_metrics": {
            **_frequencies(density.frequency if density else []),
            "average_max_encoder_cosine_sim": UNKNOWN,
            "average_max_decoder_cosine_sim": UNKNOWN,
            "frac_alive": 1 - rebuilt["dead"] / rebuilt["d_sae"],
        },
    }
    config = {"model_name": model, "context_size": run.context_length}
    return {"config": config, "metrics": metrics, "details": []}


SHRINKAGE = ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias")


def _frequencies(frequency: list[float]) -> Values:
    """The shares of latents, and of firings, of those that fire often."""
    found: Values = {}
    for percent in (1, 10):
        often = [f for f in frequency if f > percent / 100]
        key, known = f"freq_over_{percent}_percent", bool(frequency)
        found[key] = len(often) / len(frequency) if known else UNKNOWN
        found[f"normalized_{key}"] = sum(often) / (sum(frequency) or 1.0) if known else UNKNOWN
    return found


FIGURES = {"accuracy": "accuracy"}
PACKAGED = {"accuracy": "accuracy", "auc": "auroc", "f1": "f1"}


def _probing(model: str, tasks: Mapping[str, ProbedTask], *, packaged: bool) -> Values:
    figures = PACKAGED if packaged else FIGURES
    details = [_probed(name, task, figures, packaged=packaged) for name, task in tasks.items()]
    keys = [key for key in details[0] if key not in ("dataset_name", "sae_metrics_by_k")]
    means = {key: statistics.fmean(one[key] for one in details) for key in keys}
    setting = next(iter(tasks.values())).setting
    config: Values = {"model_name": model, "random_seed": setting["seed"]}
    config |= {"dataset_names": list(tasks), "ks" if packaged else "k_values": list(KS)}
    if not packaged:
        config |= {
            "probe_train_set_size": setting["n_train"],
            "probe_test_set_size": setting["n_test"],
            "context_length": setting["length"],
        }
    metrics = {
        part: {key: value for key, value in means.items() if key.startswith(part)}
        for part in ("llm", "sae")
    }
    return {"config": config, "metrics": metrics, "details": details}


def _probed(name: str, task: ProbedTask, figures: Mapping[str, str], *, packaged: bool) -> Values:
    found: Values = {"dataset_name": name}
    for theirs, ours in figures.items():
        found[f"llm_test_{theirs}"] = getattr(task.dense, ours)
        for k, latents, channels in zip(KS, task.latents, task.channels, strict=True):
            if k in SHARED_KS:
                found[f"sae_top_{k}_test_{theirs}"] = getattr(latents, ours)
                if not packaged:
                    found[f"llm_top_{k}_test_{theirs}"] = getattr(channels, ours)
    if packaged:
        found["sae_metrics_by_k"] = {
            str(k): {f"test_{theirs}": getattr(one, ours) for theirs, ours in figures.items()}
            for k, one in zip(KS, task.latents, strict=True)
        }
    return found


def _absorption(model: str, found: Any | None) -> Values | None:  # noqa: ANN401 - LetterAbsorption
    if found is None:
        return None
    columns = {
        "absorption_fraction_score": [task.rate.fraction for task in found.tasks],
        "full_absorption_score": [task.rate.full for task in found.tasks],
        "num_split_features": [float(len(task.main)) for task in found.tasks],
    }
    mean = {f"mean_{name}": statistics.fmean(values) for name, values in columns.items()}
    for name, values in columns.items():
        mean[f"std_dev_{name}"] = statistics.stdev(values) if len(values) > 1 else 0.0
    details = [
        {
            "first_letter": task.name,
            "mean_absorption_fraction": task.rate.fraction,
            "full_absorption_rate": task.rate.full,
            "num_full_absorption": round(task.rate.full * task.rate.n_rows),
            "num_probe_true_positives": task.rate.n_rows,
            "num_split_features": len(task.main),
        }
        for task in found.tasks
    ]
    config = {"model_name": model, "random_seed": found.setting["seed"]}
    return {"config": config, "metrics": {"mean": mean}, "details": details}
