"""What training and tools ask of a variant's options: what it needs, and what it cannot do."""

import abc

import torch

from saelab.config import Config


class AbstractAbilities(Config, abc.ABC):
    """The answers of a variant that can do everything; a variant overrides those that differ."""

    def check_batch(self, batch_size: int) -> None:
        """Refuse training batches of this size, if they are too small for the training rule.

        Raises:
            UsageError: the message names the size that is enough.
        """
        return

    @property
    def needs_gradient(self) -> bool:
        """Whether training reads `ActivationBatch.grad`."""
        return False

    @property
    def fitted_by(self) -> str | None:
        """What fits the weights in place of a gradient, see `AbstractSAE.own_step`; None: none."""
        return None

    def own_step_bytes(self, d_in: int, device: torch.device) -> int:
        """Memory that the variant's own step needs beside the weights and a batch; 0 if none."""
        return 0

    @property
    def several_reconstructions(self) -> str | None:
        """How training compares more than one reconstruction, as half a sentence; None if not."""
        return None

    @property
    def decoder_problem(self) -> str | None:
        """Why the SAE reconstructs no activation, as half a sentence; None if it does.

        Such an SAE has no `W_dec`, and its `outer_fit` says how well it reconstructs.
        """
        return None

    @property
    def end_to_end_problem(self) -> str | None:
        """Why this SAE cannot be trained end to end, as half a sentence; None if it can."""
        several = self.several_reconstructions
        return several and f"{several}, and the model can run on one"

    @property
    def spread_problem(self) -> str | None:
        """Why several processes cannot train this SAE, as half a sentence; None if they can.

        They can where the variant's selection and sums go through `AbstractSAE.shard`.
        """
        return "its selection is not made over several processes"

    @property
    def joint_problem(self) -> str | None:
        """Why this SAE cannot read several sites, as half a sentence; None if it can."""
        return "it does not tell them apart"

    @property
    def transcoder_problem(self) -> str | None:
        """Why this SAE cannot be a transcoder, as half a sentence; None if it can."""
        return None
