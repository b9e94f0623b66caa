"""What a graph's nodes are: where something was written, by what, and how much of it there is."""

from dataclasses import dataclass
from typing import Literal

NodeKind = Literal[
    "latent", "error", "embedding", "position", "mlp", "heads", "bias", "rest", "target"
]
"""`mlp`: an MLP's output as it is. `heads`: one head's output where no SAE reads it. `bias`: all
constants of one kind. `rest`: latents that a graph left out, together. Only latents and the target
have inputs."""


@dataclass(frozen=True)
class Node:
    """One node; equal nodes are the same.

    Attributes:
        kind: what it is.
        name: of the SAE for latents and errors, else which MLP, head or bias.
        layer: the block that writes it; -1 for embeddings, n_layers for the target.
        position: in the prompt; None for biases and the rest, which stand for all of them.
        latent: its number, for latents.
        value: its activation; 1 for what has none.
    """

    kind: NodeKind
    name: str
    layer: int
    position: int | None = None
    latent: int | None = None
    value: float = 1.0

    def label(self) -> str:
        """Short text: what, and at which position."""
        what = {
            "latent": f"{self.name} {self.latent}",
            "error": f"error {self.name}",
            "bias": f"bias {self.name}",
        }.get(self.kind, self.name)
        return what if self.position is None else f"{what} @{self.position}"
