"""A graph's latents changed in the live model: the request for the queue, and its answer.

Importing this module does not import torch; `measure` and `answer`, which the worker calls, do.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.graph_file import load_graph_hdf5
from saelab.config import UsageError
from saelab.console import stage
from saelab.training.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.analysis.circuits.intervene import Change
    from saelab.analysis.circuits.session import Session
    from saelab.host.host import Host

N_TOKENS = 8
_LATENT = re.compile(r"(.+) (\d+) @(\d+)")


@dataclass(frozen=True)
class LiveEffect:
    """The effect of a change in the live model.

    Attributes:
        before, after: the target's value.
        tokens: the most likely next tokens before or after: text, probability and logit before and
            after.
    """

    before: float
    after: float
    tokens: Sequence[Sequence[Any]]


def effect_request(
    graph: Path,
    runs: Sequence[tuple[str, Path]],
    places: Sequence[tuple[str, int, int]],
    change: tuple[str, float],
) -> dict[str, Any]:
    """What `answer` reads: a graph's file, its SAEs' runs by name, latents, and what is done."""
    saes = [[name, str(path)] for name, path in runs]
    latents = [list(place) for place in places]
    return {"graph": str(graph), "saes": saes, "latents": latents, "change": list(change)}


def answer(session: "Session", request: dict[str, Any]) -> dict[str, Any]:
    """The effect as plain values.

    Raises:
        UsageError: a run, the model or the graph is missing or does not fit.
    """
    from saelab.analysis.circuits.intervene import Change

    path = Path(request["graph"])
    graph = load_graph_hdf5(path)
    names = [name for name, _ in request["saes"]]
    runs = [Run(Path(run)) for _, run in request["saes"]]
    for run in runs:
        run.check_finished()
    _, hosts = session.loaded(runs)
    named = [replace(host, name=name) for name, host in zip(names, hosts, strict=True)]
    stage("Run the model")
    places = [(name, latent, position) for name, latent, position in request["latents"]]
    return asdict(measure(graph, named, Change(places, *request["change"]), path))


def measure(
    graph: AttributionGraph, hosts: "Sequence[Host]", change: "Change", path: Path
) -> LiveEffect:
    """Run the graph's prompt unchanged and changed; `path` is the graph's file.

    Raises:
        UsageError: the graph's tokens are not the model's.
    """
    from saelab.analysis.circuits.intervene import intervene

    first, facts = hosts[0], graph.facts
    watched = _LATENT.fullmatch(str(facts.get("target"))) if facts.get("token") is None else None
    result = intervene(
        first.lm,
        hosts,
        _tokens(graph, first, path),
        change,
        position=graph.nodes[-1].position or 0,
        watched=(watched[1], int(watched[2]), int(watched[3])) if watched else None,
    )
    if result.latent is not None:
        return LiveEffect(*result.latent, [])
    before, after = (_logit_value(facts, logits) for logits in (result.before, result.after))
    return LiveEffect(before, after, _likeliest(first, result.before, result.after))


def _tokens(graph: AttributionGraph, live: "Host", path: Path) -> "Tensor":
    import torch

    ids, texts = graph.facts.get("token_ids"), graph.tokens
    vocabulary = live.lm.info.d_vocab
    whole = isinstance(ids, list) and all(isinstance(i, int) and 0 <= i < vocabulary for i in ids)
    names = [live.lm.tokenizer.token(i) for i in ids or []] if whole else []
    if not whole or len(names) != len(texts) or not all(map(_same, names, texts)):
        raise UsageError(
            f"The tokens of {path} are not those of {live.lm.info.name}; run `saelab circuit` "
            "again."
        )
    return torch.tensor(ids, device=live.lm.device)


def _same(name: str, text: str) -> bool:
    """Whether a token has this name, or had it in graphs older than distinct names."""
    return text in (name, name.strip(" ")) or "\ufffd" in text


def _logit_value(facts: dict[str, Any], logits: "Tensor") -> float:
    """The graph's target computed from logits: one minus another, or minus the mean."""
    known = [facts.get(name) for name in ("token", "against")]
    token, against = (i if isinstance(i, int) and 0 <= i < len(logits) else None for i in known)
    if token is None:
        raise UsageError("The graph does not say which token it explains; compute it again.")
    base = logits.mean() if against is None else logits[against]
    return float(logits[token] - base)


def _likeliest(live: "Host", before: "Tensor", after: "Tensor") -> list[tuple[str | float, ...]]:
    p, q = before.softmax(-1), after.softmax(-1)
    best = p.maximum(q).topk(min(N_TOKENS, len(p))).indices.tolist()
    columns = (p, q, before, after)
    return [(live.lm.tokenizer.token(i), *(float(column[i]) for column in columns)) for i in best]
