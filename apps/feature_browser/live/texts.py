"""The latents that fire in a text, by a forward pass alone."""

from typing import TYPE_CHECKING

from feature_browser.live.model import lock_of
from saelab.analysis.contrast import Fired, largest
from saelab.lm.prompt import prompt_tokens

if TYPE_CHECKING:
    from saelab.host.host import Host


def fired_in(live: "Host", text: str) -> Fired:
    """The latents that fire in `text`, and the largest |activation| of each.

    The model is free between two texts, so that other readers wait for one at most.

    Raises:
        UsageError: the text is empty, too long, or has tokens that the model does not know.
    """
    import torch

    with lock_of(live.lm), torch.no_grad():
        ids = prompt_tokens(live.lm, text)
        tokens = torch.tensor([ids], device=live.lm.device)
        seen = live.lm.run(tokens, edits={}, hooks=live.sites).activations
        codes, _ = live.encode(tokens, seen[live.reads], seen[live.writes])
        active = codes.active
        latent, value = codes.indices[active], codes.values[active].float()
        return largest(latent.cpu().numpy(), value.cpu().double().numpy())
