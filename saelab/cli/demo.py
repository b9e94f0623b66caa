"""`saelab demo`: the whole pipeline on the shipped language model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.cli.parse import parse
from saelab.config import Config
from saelab.files import check_writable

if TYPE_CHECKING:
    from saelab.evaluation.results import Evaluation


class DemoArguments(Config):
    """Run the whole pipeline on the shipped language model: under 3 minutes on 2 CPU cores.

    It harvests a residual stream and an attention layer's heads from the same forward passes,
    trains a TopK SAE on each, measures both on held-out text, collects their features for the
    browser, scores which latents steer the model, and explains a prediction by the latents of both.
    Everything is written below --out; running it again continues where it stopped.

        saelab demo
    """

    out: Path = Path("runs/demo")
    """Directory for the activations and two runs."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""


N_TOKENS = 500_000
PROMPT = "anna met john in the park . john gave a book to"
"""The explained token is the next one: the name of the person who did not give."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(DemoArguments, "demo", arguments)
    check_writable(args.out, "--out")
    started = time.monotonic()
    # Imported here, so that --help does not wait for torch.
    from saelab.cli.tables import print_section, wide_console
    from saelab.evaluation.report import report

    results = _pipeline(args)
    console = wide_console()
    for section in report(results, ("reconstruction", "downstream", "recovery")):
        print_section(console, section, ends=8)
    console.print(
        f"\nDone in {time.monotonic() - started:.0f} s. To look at every latent: "
        f"saelab browse {args.out}, then open http://127.0.0.1:8501"
    )
    print(args.out)
    return 0


def _pipeline(args: DemoArguments) -> "dict[str, Evaluation]":
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions, harvest
    from saelab.analysis.circuits.explain import explain_runs, save_circuit
    from saelab.analysis.features import FeatureOptions, collect_features
    from saelab.analysis.steering.scores import steering_scores
    from saelab.evaluation.evaluate import evaluate
    from saelab.lm.load import load_language_model
    from saelab.training.loop import train
    from saelab.training.recipes import TINY_ATTENTION, TINY_RESIDUAL, tiny_topk

    sites = {"residual": TINY_RESIDUAL, "attention": TINY_ATTENTION}
    store = args.out / "activations"
    lm = load_language_model("tiny", device=args.device)
    options = HarvestOptions(n_tokens=N_TOKENS)
    harvest(lm, list(sites.values()), load_corpus("tiny", lm), out=store, options=options)
    runs, results = [], {}
    for name, site in sites.items():
        run = train(tiny_topk(store, site), out=args.out / f"topk-{name}", device=args.device)
        evaluation = evaluate(run, lm)
        collect_features(run, lm, FeatureOptions(n_tokens=150_000))
        steering_scores(run, lm)
        runs.append(run)
        results[run.name] = evaluation
    save_circuit(explain_runs(lm, runs, PROMPT), runs, PROMPT, lm)
    return results
