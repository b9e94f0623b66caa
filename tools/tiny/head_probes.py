"""Where attention heads attend, what they write, and the model without one of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from saelab.lm.tiny.grammar import generate_tokens
from saelab.lm.tiny.tasks import Prompts

Head = tuple[int, int]
"""Layer and head."""

GIVER_BEFORE_END = 4
"""`john gave a drink to`: the giver stands this many tokens before the last."""


def attention_scores(
    model: GPT2LMHeadModel, spans: Prompts, recipients: Prompts
) -> tuple[Float[Tensor, "layer head"], ...]:
    """Mean attention of every head to four places, as `HeadScores` describes them.

    In order: the token before, the previous occurrence of the current token and the token after
    that (both in `spans`), and the recipient's name (from the last token of `recipients`).
    """
    rows = torch.arange(len(spans.tokens))
    patterns = _patterns(model, spans.tokens)
    earlier = _last_occurrence(spans.tokens, spans.tokens[rows, spans.last], spans.last)
    before = _before(patterns, spans.last)
    duplicate = patterns[rows, :, :, spans.last, earlier].mean(0)
    induction = patterns[rows, :, :, spans.last, earlier + 1].mean(0)
    recipient = _last_occurrence(recipients.tokens, answers(recipients), recipients.last)
    moved = _patterns(model, recipients.tokens)[rows, :, :, recipients.last, recipient].mean(0)
    return before, duplicate, induction, moved


def _patterns(
    model: GPT2LMHeadModel, tokens: Int[Tensor, "n pos"]
) -> Float[Tensor, "n layer head pos pos"]:
    attentions = model(input_ids=tokens, use_cache=False, output_attentions=True).attentions
    return torch.stack(attentions, dim=1)


def _before(
    patterns: Float[Tensor, "n layer head pos pos"], last: Int[Tensor, " n"]
) -> Float[Tensor, "layer head"]:
    diagonal = patterns.diagonal(-1, dim1=-2, dim2=-1)
    inside = (torch.arange(1, patterns.shape[-1]) <= last[:, None]).float()
    return torch.einsum("nlhp,np->lh", diagonal, inside) / inside.sum()


def _last_occurrence(
    tokens: Int[Tensor, "n pos"], wanted: Int[Tensor, " n"], end: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """The last position of `wanted` before `end`."""
    positions = torch.arange(tokens.shape[1])
    found = (tokens == wanted[:, None]) & (positions < end[:, None])
    return (found * positions).amax(-1)


def answers(asked: Prompts) -> Int[Tensor, " n"]:
    """The one correct token of each prompt."""
    return asked.correct.int().argmax(-1)


def givers(asked: Prompts) -> Int[Tensor, " n"]:
    """The giver of each indirect-object prompt."""
    return asked.tokens.gather(1, asked.last[:, None] - GIVER_BEFORE_END)[:, 0]


def direct_effects(model: GPT2LMHeadModel, asked: Prompts) -> Float[Tensor, "layer head"]:
    """What each head writes directly to logit(recipient) - logit(giver), mean over the prompts.

    The final norm is taken as linear, at the scale it has on each prompt.
    """
    rows = torch.arange(len(asked.tokens))
    final: list[Tensor] = []
    norm = model.transformer.ln_f
    handle = norm.register_forward_pre_hook(lambda _, inputs: final.append(inputs[0]))
    try:
        outputs = _head_outputs(model, asked.tokens)
    finally:
        handle.remove()
    scale = (final[0][rows, asked.last].var(-1, correction=0) + norm.eps).rsqrt()
    unembed = model.lm_head.weight
    wanted = (unembed[answers(asked)] - unembed[givers(asked)]) * norm.weight
    # The final norm subtracts the mean, so only the centred direction counts.
    direction = (wanted - wanted.mean(-1, keepdim=True)) * scale[:, None]
    effects = []
    for layer, z in enumerate(outputs):
        heads = z[rows, asked.last].unflatten(-1, (model.config.n_head, -1))
        weight = _output_projection(model, layer).weight.unflatten(0, (heads.shape[1], -1))
        written = torch.einsum("nhd,hdm->nhm", heads, weight)
        effects.append(torch.einsum("nhm,nm->h", written, direction) / len(rows))
    return torch.stack(effects)


def _head_outputs(
    model: GPT2LMHeadModel, tokens: Int[Tensor, "n pos"]
) -> list[Float[Tensor, "n pos d_model"]]:
    """The input of each layer's output projection: the heads' outputs, concatenated."""
    seen: list[Tensor] = []
    handles = [
        _output_projection(model, layer).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        for layer in range(model.config.n_layer)
    ]
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _output_projection(model: GPT2LMHeadModel, layer: int) -> Conv1D:
    projection = model.get_submodule(f"transformer.h.{layer}.attn.c_proj")
    assert isinstance(projection, Conv1D)
    return projection


def mean_outputs(model: GPT2LMHeadModel, n: int, seed: int) -> list[Float[Tensor, " d_model"]]:
    """What the heads of each layer pass to its output projection, over `n` held-out documents."""
    tokens = torch.from_numpy(generate_tokens(seed, 0, n, split="held-out")).long()
    return [z.mean((0, 1)) for z in _head_outputs(model, tokens)]


@contextmanager
def ablated(
    model: GPT2LMHeadModel, heads: Sequence[Head], means: Sequence[Float[Tensor, " d_model"]]
) -> Iterator[None]:
    """A context in which heads give their part of their layer's `means`, for any text."""
    handles = []
    for layer, head in heads:
        width = len(means[layer]) // model.config.n_head
        part = slice(head * width, (head + 1) * width)
        hook = partial(_replace_part, part, means[layer][part])
        handles.append(_output_projection(model, layer).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replace_part(
    part: slice, mean: Float[Tensor, " d_head"], _: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    z = inputs[0].clone()
    z[..., part] = mean
    return (z, *inputs[1:])
