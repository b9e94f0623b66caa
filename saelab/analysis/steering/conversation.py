"""A conversation with the plain and the steered model, side by side.

Each reads what it has said itself, so the two may drift apart. An answer ends at the first special
token (a chat template's end of turn), or after `Sampling.n_tokens`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saelab.analysis.steering.generate import Continuation, continued
from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.analysis.steering.self_test import verify
from saelab.analysis.steering.writing import Sampling
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.prompt import chat_prompt, encode_prompt, messages_of


@dataclass(frozen=True)
class Exchange:
    """A message, and what the plain and the steered model answer to it."""

    message: str
    plain: Continuation
    steered: Continuation


@torch.no_grad()
def reply(
    host: Host,
    change: Intervention,
    earlier: Sequence[Exchange],
    message: str,
    sampling: Sampling | None = None,
) -> Exchange:
    """Both models' answers to `message`, each after its own answers to the `earlier` messages.

    The first message may be several, as `chat_prompt` reads them. The two share their random
    numbers, which differ from turn to turn. `n_samples` is 1.

    Raises:
        UsageError: the model has no chat template, a message is empty, or the conversation is
            longer than the model reads.
        RuntimeError: the change did not take effect.
    """
    sampling = (sampling or Sampling()).model_copy(update={"n_samples": 1})
    sampling = sampling.model_copy(update={"seed": sampling.seed + len(earlier)})
    found: list[Continuation] = []
    for side, changes in (("plain", []), ("steered", [change])):
        prompt = chat_prompt(host.lm, conversation(earlier, message, side))
        tokens = encode_prompt(host.lm, prompt)[None]
        if changes:
            n = tokens.shape[1]
            mask = position_mask(host.lm, tokens, change.positions, n, host.domain)
            verify(host, tokens, changes, mask)
        found.append(_ended(host, continued(host, tokens, changes, sampling)[0]))
    return Exchange(message, *found)


def converse(
    host: Host, change: Intervention, messages: Sequence[str], sampling: Sampling | None = None
) -> list[Exchange]:
    """A whole conversation: the answers to one message after another; raises as `reply`."""
    exchanges: list[Exchange] = []
    for message in messages:
        exchanges.append(reply(host, change, exchanges, message, sampling))
    return exchanges


def conversation(earlier: Sequence[Exchange], message: str, side: str) -> str:
    """What one of the two models (`plain` or `steered`) reads: messages as JSON."""
    said = [*(one.message for one in earlier), message]
    if not message.strip():
        raise UsageError("The message is empty; write some text.")
    messages = [dict(one) for one in messages_of(said[0])]
    for past, following in zip(earlier, said[1:], strict=True):
        messages.append({"role": "assistant", "content": getattr(past, side).text.strip()})
        messages.append({"role": "user", "content": following})
    return json.dumps(messages)


def _ended(host: Host, answer: Continuation) -> Continuation:
    """The answer up to its end."""
    table, special = host.lm.tokenizer.table, set(host.lm.info.special_token_ids)
    ends = {table.name(token) for token in special}
    n = next((n for n, one in enumerate(answer.tokens) if one.text in ends), len(answer.tokens))
    return Continuation(answer.tokens[:n], answer.pieces[:n], answer.gap)
