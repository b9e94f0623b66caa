"""Prompts about entities that a language model answers right, and pairs of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activations.corpus import PADDING
from saelab.activations.forward import model_input
from saelab.console import progress
from saelab.evaluation.tasks.entities import SLOT, Entities, says
from saelab.evaluation.tasks.pooled import Prompt, TextReader
from saelab.lm.greedy import continue_greedily, of_one_length
from saelab.lm.prompt import prompt_tokens
from saelab.lm.protocol import LanguageModel

N_SAID = 6
"""Tokens that the model writes."""
FIT_SHARE = 0.7
AT_ONCE = 256


@dataclass(frozen=True)
class KnownPrompt:
    """A prompt that the model answers right.

    Attributes:
        at: the position of the entity's last token.
        said: the first token of the model's answer.
        x, written: the activations there at the sites that the SAE reads and writes, on the CPU.
    """

    attribute: str
    value: str
    tokens: Prompt
    at: int
    said: int
    x: Float[Tensor, " d_in"]
    written: Float[Tensor, " d_out"]


@dataclass(frozen=True)
class Pair:
    """Two prompts for one attribute, of which the entities have different values."""

    base: KnownPrompt
    source: KnownPrompt


def halves_of(entities: Entities, seed: int) -> tuple[list[str], list[str]]:
    """Entities whose prompts are fitted on, and those that are scored."""
    names = list(entities.values)
    random.Random(seed).shuffle(names)
    n = round(FIT_SHARE * len(names))
    return names[:n], names[n:]


def known_prompts(
    reader: TextReader,
    entities: Entities,
    attribute: str,
    among: Sequence[str],
    most: int,
    seed: int,
) -> tuple[list[KnownPrompt], int]:
    """At most `most` prompts for the attribute that the model answers right, in random order.

    Returns these and how many prompts were asked.
    """
    templates = entities.templates[attribute]
    own = [name for name in among if attribute in entities.values[name]]
    asked = [(name, template) for name in own for template in templates]
    random.Random(f"{seed} {attribute}").shuffle(asked)
    found: list[KnownPrompt] = []
    n_asked = 0
    with progress(f"Prompts for {attribute}", len(asked), "prompts") as bar:
        while len(found) < most and n_asked < len(asked):
            some = asked[n_asked : n_asked + AT_ONCE]
            n_asked += len(some)
            labels = [entities.values[name][attribute] for name, _ in some]
            prompts = [asking(reader.host.lm, *each) for each in some]
            found += _known(reader, attribute, labels, prompts)
            bar.advance(len(some))
    return found[:most], n_asked


def asking(lm: LanguageModel, entity: str, template: str) -> tuple[Prompt, int]:
    """The tokens of a prompt, and the position of the token that ends the entity's name."""
    before, after = template.split(SLOT)
    tokens, head = (prompt_tokens(lm, text) for text in (before + entity + after, before + entity))
    same = 0
    while same < len(head) and tokens[same] == head[same]:
        same += 1
    # If the name's last letters share a token with what follows, that token ends the name.
    at = len(head) - 1 if same == len(head) else same
    return np.array(tokens, dtype=np.int64), min(at, len(tokens) - 1)


def _known(
    reader: TextReader, attribute: str, values: list[str], prompts: list[tuple[Prompt, int]]
) -> list[KnownPrompt]:
    host, lm = reader.host, reader.host.lm
    found: dict[int, KnownPrompt] = {}
    tokens = [prompt for prompt, _ in prompts]
    for places in of_one_length(tokens, reader.at_once(max(map(len, tokens)))):
        batch = torch.from_numpy(np.stack([tokens[i] for i in places]))
        said = continue_greedily(lm, batch, N_SAID)
        reader.n_tokens += batch.numel() + said.numel()
        right = [says(text_of(lm, row), values[i]) for i, row in zip(places, said, strict=True)]
        at = torch.tensor([prompts[i][1] for i in places])
        seen = lm.capture(batch.to(lm.device), host.sites)
        x, *targets = (seen[site][torch.arange(len(at)), at] for site in host.sites)
        target = targets[0] if targets else None
        own = batch[torch.arange(len(at)), at].to(lm.device)
        applies = host.domain.covers(own, x, target=target, positions=at.to(lm.device)).tolist()
        written = x if target is None else target
        for row, i in enumerate(places):
            if right[row] and applies[row]:
                first, here = int(said[row, 0]), int(at[row])
                found[i] = KnownPrompt(
                    attribute, values[i], tokens[i], here, first, x[row].cpu(), written[row].cpu()
                )
    return [found[i] for i in sorted(found)]


def text_of(lm: LanguageModel, tokens: Tensor) -> str:
    """The text of a row of tokens."""
    return lm.tokenizer.table.text(tokens.tolist())


def pairs_of(prompts: Sequence[KnownPrompt], most: int, seed: int) -> list[Pair]:
    """Pairs of which each has another base; the sources are drawn."""
    drawing = random.Random(seed)
    found = []
    for base in prompts[:most]:
        others = [prompt for prompt in prompts if prompt.value != base.value]
        if others:
            found.append(Pair(base, drawing.choice(others)))
    return found


def padded(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """The prompts as the model reads them side by side, and which position is the last of each."""
    tokens = np.full((len(prompts), max(map(len, prompts))), PADDING, dtype=np.int64)
    last = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        last[row, len(prompt) - 1] = True
    return model_input(tokens), last
