"""How well a model knows the tasks: `python -m tools.tiny.tasks --model DIR`."""

import argparse
from pathlib import Path

from saelab.lm.tiny import MODEL_DIR
from saelab.lm.tiny.tasks import TASKS, accuracies
from tools.tiny.architecture import load_model, logits_of


def main() -> None:
    """Print the accuracies of a model directory."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny.tasks", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="model directory")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    model = load_model(arguments.model, device=arguments.device, attention="sdpa")
    scores = accuracies(logits_of(model))
    for of in TASKS:
        print(f"{of.name:28s} {scores[of.name]:.3f}  (required {of.required})")  # noqa: T201


if __name__ == "__main__":
    main()
