"""Training the shipped model: `python -m tools.tiny.train --out DIR`.

Documents are generated while training, each used once. A step's documents depend only on its
number, so a stopped run continues as if it had not stopped.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.config import Config, UsageError
from saelab.console import progress
from saelab.files import atomic_write
from saelab.formats.json_file import read_config
from saelab.lm.tiny import N_CTX
from tools.tiny.architecture import new_model, save_model
from tools.tiny.checkpoint import load_checkpoint, save_checkpoint
from tools.tiny.stream import token_batches

STEPS_BETWEEN_FIGURES = 50


class TinyTrainConfig(Config):
    """What decides the weights, given the same device and versions."""

    tokens: int = 300_000_000
    """Tokens to train on, rounded up to whole steps."""
    seed: int = 0
    """Seed of the initial weights and of the documents."""
    batch: int = 128
    """Number of documents of 128 tokens per step."""
    lr: float = 2e-3
    """Learning rate after warm-up; the last 30 % of the steps lower it linearly to zero."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices and embeddings; biases and norms are not decayed."""
    device: str = "cpu"
    """Where to train."""

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return -(-self.tokens // (self.batch * N_CTX))


def train(
    out: Path,
    config: TinyTrainConfig,
    *,
    workers: int = 0,
    checkpoint_every: int = 2000,
    stop_after: int | None = None,
) -> nn.Module:
    """The trained float32 model; `out` receives the bf16 model directory and the checkpoints.

    A directory with a checkpoint of the same configuration is continued. `workers` processes
    generate documents (0: this process). `stop_after` ends the run early, at this step, with a
    checkpoint.

    Raises:
        UsageError: `out` was begun with another configuration, or a size is not positive.
    """
    _claim(out, config)
    model = nn.Module.to(new_model(config.seed), torch.device(config.device))
    optimizer = _optimizer(model, config)
    step = load_checkpoint(out, model, optimizer)
    last = min(config.steps, config.steps if stop_after is None else stop_after)
    batches = token_batches(config.seed, config.batch, range(step, last), workers)
    per_step = config.batch * N_CTX
    with batches as stream, progress("train", last * per_step, "tokens", step * per_step) as bar:
        figures = ""
        for tokens in stream:
            _set_learning_rate(optimizer, config, step)
            loss = _step(model, optimizer, tokens.to(config.device, non_blocking=True))
            step += 1
            if step % STEPS_BETWEEN_FIGURES == 0 or step == last:
                figures = f"loss {loss.item():.4f}"
            bar.advance(per_step, figures)
            if step % checkpoint_every == 0 or step == last:
                save_checkpoint(out, step, model, optimizer)
    if step == config.steps:
        save_model(model, out)
    return model


def _claim(out: Path, config: TinyTrainConfig) -> None:
    if min(config.tokens, config.batch) < 1:
        raise UsageError(f"tokens={config.tokens} and batch={config.batch} must be positive.")
    path = out / "train.json"
    if not path.exists():
        atomic_write(path, config.to_json().encode())
        return
    begun = read_config(TinyTrainConfig, path).model_dump()
    asked = config.model_dump()
    different = [f"{key}={begun[key]}" for key in asked if asked[key] != begun[key]]
    if different:
        raise UsageError(
            f"{out} was begun with {', '.join(different)}; give the same, or another --out."
        )


def _optimizer(model: nn.Module, config: TinyTrainConfig) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = config.device.startswith("cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=fused)


def learning_rate(config: TinyTrainConfig, step: int) -> float:
    """Linear warm-up, flat, then linear decay to zero over the last 30 % of the steps."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay = min(1.0, (config.steps - step) / max(1.0, 0.3 * config.steps))
    return config.lr * min(warm, decay)


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, config: TinyTrainConfig, step: int
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    for name, field in TinyTrainConfig.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        # argparse takes a percent sign for the start of a placeholder.
        text = f"{field.description} (default: {field.default})".replace("%", "%%")
        parser.add_argument(flag, type=type(field.default), default=field.default, help=text)
    parser.add_argument("--workers", type=int, default=2, help="processes that generate documents")
    parser.add_argument("--checkpoint-every", type=int, default=2000, help="steps")
    arguments = vars(parser.parse_args())
    out, workers = arguments.pop("out"), arguments.pop("workers")
    every = arguments.pop("checkpoint_every")
    config = TinyTrainConfig.model_validate(arguments)
    try:
        train(out, config, workers=workers, checkpoint_every=every)
    except UsageError as error:
        parser.error(str(error))
    print(out)  # noqa: T201


if __name__ == "__main__":
    main()
