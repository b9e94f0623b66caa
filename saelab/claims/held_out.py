"""Text that no SAE was trained on, and a language model's activations on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.activations.corpus import Corpus
from saelab.activations.forward import model_input, row_mask
from saelab.evaluation.downstream import counted_positions, cross_entropy
from saelab.lm.edits import replace_rows
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE

CONTEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class HeldOut:
    """Contexts of held-out text, on the model's device.

    Attributes:
        mask: the positions that have a row: no special tokens, no padding.
        x: the rows at each site that was asked for, in reading order, in float32.
        labels: ground-truth labels of the rows by name; empty if the text has none.
    """

    lm: LanguageModel
    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]
    x: Mapping[str, Float[Tensor, "row d_in"]]
    labels: Mapping[str, Bool[Tensor, " row"]]

    @classmethod
    @torch.no_grad()
    def read(
        cls, lm: LanguageModel, corpus: Corpus, sites: Sequence[str], n_contexts: int
    ) -> "HeldOut":
        """The first contexts of `corpus`, whose split is `held-out`."""
        contexts = corpus.read(0, n_contexts)
        mask = torch.from_numpy(row_mask(lm, contexts.tokens)).to(lm.device)
        tokens = model_input(contexts.tokens).to(lm.device)
        parts: dict[str, list[Tensor]] = {site: [] for site in sites}
        for some in _parts(len(tokens)):
            for site, values in lm.capture(tokens[some], sites).items():
                parts[site].append(values[mask[some]].float())
        labels = {}
        if contexts.labels is not None:
            columns = torch.from_numpy(np.asarray(contexts.labels)).to(lm.device)[mask].T.bool()
            labels = dict(zip(corpus.label_names, columns, strict=True))
        return cls(lm, tokens, mask, {site: torch.cat(p) for site, p in parts.items()}, labels)

    def ce_increase(self, sae: AbstractSAE, site: str) -> float:
        """Nats per token that the model loses when it reads the SAE's reconstruction."""
        return self.increase_of(sae.reconstruct(self.x[site]), site)

    def increase_of(self, x_hat: Float[Tensor, "row d_in"], site: str) -> float:
        """Nats per token that the model loses when it reads these rows at `site`."""
        return self._ce({site: x_hat}) - self._ce({})

    @torch.no_grad()
    def gradients(self, site: str) -> Float[Tensor, "row d_in"]:
        """DL/dx of the summed next-token loss at the rows of `site`."""
        found = []
        for some in _parts(len(self.tokens)):
            _, grads = self.lm.gradients(self.tokens[some], [site], self.mask[some])
            found.append(grads[site].detach()[self.mask[some]].float())
        return torch.cat(found)

    @torch.no_grad()
    def _ce(self, rows: Mapping[str, Float[Tensor, "row d_in"]]) -> float:
        """Nats per token with these rows in the place of the model's own."""
        total, n, first = 0.0, 0, 0
        for some in _parts(len(self.tokens)):
            mask, tokens = self.mask[some], self.tokens[some]
            last = first + int(mask.sum())
            edits = {site: replace_rows(mask, x[first:last]) for site, x in rows.items()}
            counted = F.pad(counted_positions(mask), (0, 1))
            out = self.lm.run(tokens, edits=edits).at(counted)
            total += float(cross_entropy(out, tokens[:, 1:][counted[:, :-1]]))
            n, first = n + len(out), last
        return total / n


def _parts(n: int) -> Iterator[slice]:
    for first in range(0, n, CONTEXTS_AT_ONCE):
        yield slice(first, min(first + CONTEXTS_AT_ONCE, n))
