"""Likelihood of texts under the plain model; each different text is read once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.analysis.steering.writing import read_shared
from saelab.lm.protocol import LanguageModel
from saelab.lm.reading import ReadsOn

TEXTS_AT_ONCE = 256


@torch.no_grad()
def log_likelihoods(
    lm: LanguageModel,
    prompts: Int[Tensor, "text pos"],
    new: Int[Tensor, "text new"],
    lengths: Int[Tensor, " text"],
) -> Float[Tensor, " text"]:
    """The log-probability (float64) of the first `lengths` tokens of `new` after their prompts."""
    n_prompt = prompts.shape[1]
    place = torch.arange(new.shape[1], device=new.device)
    counted = new.masked_fill(place >= lengths[:, None], -1)
    whole = torch.cat([lengths[:, None], prompts.to(new.device), counted], dim=1)
    # Sorted by length first, so that texts read together have similar lengths.
    different, which = whole.unique(dim=0, return_inverse=True)
    parts = []
    for part in different.split(TEXTS_AT_ONCE):
        text = part[:, 1 : 1 + n_prompt + int(part[:, 0].max())]
        parts.append(_sums(lm, text, n_prompt))
    return torch.cat(parts)[which]


def _sums(
    lm: LanguageModel, text: Int[Tensor, "text pos"], n_prompt: int
) -> Float[Tensor, " text"]:
    """Sums over the tokens after the prompts, up to the -1."""
    new = text[:, n_prompt:]
    real = new.clamp(min=0)
    read = torch.cat([text[:, :n_prompt], real], dim=1)[:, :-1]
    if isinstance(lm, ReadsOn) and lm.reads_on:
        past, n = read_shared(lm, read, n_prompt - 1)
        out, _ = lm.read_on(read[:, n:], past)
    else:
        out = lm.run(read)
    counted = new >= 0
    unread = out.hidden.shape[1] - new.shape[1]
    found = torch.zeros(new.shape, dtype=torch.float64, device=new.device)
    log_probs = out.at(F.pad(counted, (unread, 0))).log_probs(new[counted])
    found[counted] = log_probs.double()
    return found.sum(dim=1)
