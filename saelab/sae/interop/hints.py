"""What somebody knows of an SAE that its file does not say."""

from dataclasses import dataclass

from saelab.config import UsageError


@dataclass(frozen=True)
class Hints:
    """Facts that stand beside a file: in a name, a paper, or a command.

    Attributes:
        k: latents kept in each row.
        transcoder: whether the SAE reconstructs other activations than it reads; None: unknown.
    """

    k: int | None = None
    transcoder: bool | None = None

    def with_k(self, source: object, stated: int | None) -> int:
        """The k of a top-k SAE, from the file's own surroundings or from here.

        Raises:
            UsageError: neither says it, or they differ.
        """
        if stated is not None and self.k not in (None, stated):
            raise UsageError(f"{source}: its name says k={stated}, not {self.k}.")
        k = self.k if stated is None else stated
        if k is None:
            raise UsageError(f"{source} does not say how many latents each row keeps; give --k.")
        return k
