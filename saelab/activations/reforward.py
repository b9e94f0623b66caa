"""Comparing stored rows with a fresh forward pass of the model."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from saelab.activations.forward import model_input
from saelab.activations.order import permutation
from saelab.activations.sequences import Sequences
from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.lm.protocol import ActivationSource

FORWARD_CONTEXTS = 8
ROUNDING = {"float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}
"""One unit in the last place of each stored dtype."""
COMPUTED = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
"""Relative difference, ||difference|| over a row's norm, of forward passes in a dtype between batch
sizes, back ends and devices; in half precision it grows over the layers."""


@dataclass(frozen=True)
class Reforward:
    """The comparison at one site.

    Attributes:
        site: name of the site.
        rows: number of rows compared.
        error: largest ||stored - fresh|| of a row over ||fresh||.
        limit: the largest error that rounding explains.
    """

    site: str
    rows: int
    error: float
    limit: float

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference."""
        return self.error <= self.limit


def reforward(
    store: ActivationStore, lm: ActivationSource, n_contexts: int, seed: int = 0
) -> list[Reforward]:
    """Run `n_contexts` random contexts again and compare all their stored activations.

    A checksum finds changes after writing. This finds wrong rows: of another token, another model,
    another hook. Gradients are not compared.

    Raises:
        UsageError: `lm` is not the store's model, or the store was made from arrays.
    """
    facts = store.manifest.model
    if facts is None:
        raise UsageError(f"{store.path} was made from arrays; there is no model to run again.")
    if facts["weights_digest"] != lm.info.weights_digest:
        raise UsageError(
            f"{store.path} was harvested from {facts['name']} with other weights than "
            f"{lm.info.name} has."
        )
    hooks = [site.hook for site in store.manifest.sites if site.kind == "activation"]
    worst = dict.fromkeys(hooks, 0.0)
    rows = 0
    for unit, contexts in _chosen(store, n_contexts, seed).items():
        columns = store.tokens(unit)
        first = store.manifest.unit_contexts(unit).start
        start = sum(store.unit_rows[: store.units.index(unit)])
        for some in np.array_split(contexts, -(-len(contexts) // FORWARD_CONTEXTS)):
            here = np.flatnonzero(np.isin(columns.context, some))
            sequences = Sequences.of(columns.contexts[some - first])
            tokens, place = sequences.padded()
            fresh = lm.capture(model_input(tokens), hooks)
            ran = np.empty(sequences.contexts.size, dtype=np.int64)
            ran[place[place >= 0]] = np.flatnonzero(place.ravel() >= 0)
            line = np.searchsorted(some, columns.context[here])
            at = ran[line * store.manifest.context_length + columns.position[here]]
            rows += len(here)
            for hook in hooks:
                expected = fresh[hook].flatten(0, 1)[torch.from_numpy(at)].cpu().float()
                stored = store.site(hook).take(start + here)
                size = expected.double().norm(dim=1).clamp_min(1e-30)
                error = ((stored - expected).double().norm(dim=1) / size).max()
                worst[hook] = max(worst[hook], float(torch.nan_to_num(error, torch.inf)))
    # Stored numbers are rounded to nearest, so each is off by half a unit at most.
    limit = ROUNDING[store.manifest.dtype] / 2 + COMPUTED[str(facts.get("dtype", "float32"))]
    return [Reforward(hook, rows, worst[hook], limit) for hook in hooks]


def _chosen(
    store: ActivationStore, n_contexts: int, seed: int
) -> dict[int, Int[np.ndarray, " context"]]:
    """Random contexts of the committed units, by unit."""
    spans = [np.asarray(store.manifest.unit_contexts(unit)) for unit in store.units]
    everything = np.concatenate(spans)
    picked = everything[permutation(len(everything), seed)[:n_contexts]]
    return {
        unit: np.sort(inside)
        for unit, span in zip(store.units, spans, strict=True)
        if len(inside := picked[np.isin(picked, span)])
    }
