"""The most likely continuations of prompts."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from saelab.lm.predictions import Predictions
from saelab.lm.protocol import Edit, LanguageModel
from saelab.lm.reading import ReadsOn


@torch.no_grad()
def continue_greedily(
    lm: LanguageModel,
    prompts: Int[Tensor, "batch pos"],
    n: int,
    edits: Mapping[str, Edit] | None = None,
) -> Int[Tensor, "batch n"]:
    """The n most likely tokens behind each prompt, one after the other.

    Edits must change positions of the prompts only. They see the whole contexts, or the prompts
    alone if the model can read on.
    """
    reader = lm if isinstance(lm, ReadsOn) and lm.reads_on else None
    prompts = prompts.to(lm.device)
    if reader is None:
        for _ in range(n):
            said = most_likely(lm.run(prompts, edits=edits).behind())
            prompts = torch.cat([prompts, said[:, None]], dim=1)
        return prompts[:, prompts.shape[1] - n :]
    out, past = reader.read_on(prompts, None, edits)
    found = [most_likely(out.behind())]
    for _ in range(n - 1):
        out, past = reader.read_on(found[-1][:, None], past)
        found.append(most_likely(out.behind()))
    return torch.stack(found, dim=1)


def most_likely(predictions: Predictions) -> Int[Tensor, " n"]:
    """The token of the largest logit at each position."""
    found = [predictions.logits(part).argmax(dim=1) for part in predictions.pieces()]
    return torch.cat(found)


def of_one_length(prompts: Sequence[Int[ndarray, "_"]], most: int) -> Iterator[list[int]]:
    """The places of prompts in batches of at most `most` prompts of the same length."""
    lengths = np.array([len(prompt) for prompt in prompts])
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        for first in range(0, len(places), most):
            yield places[first : first + most].tolist()
