"""Studies of heads by their latents (arXiv 2406.17759): themes, induction, latent families.

Attention alone does not prove a function: `tools.tiny.heads` shows by ablation which heads of the
shipped model matter.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab import drawing
from saelab.analysis.attention.dfa import OF_ATTENTION, dfa, read_through_output
from saelab.analysis.attention.heads import HeadAttribution
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.internals import model_weights
from saelab.lm.linear.paths import ModelWeights
from saelab.lm.protocol import LanguageModel
from saelab.lm.record import LayerRecord, record_forward
from saelab.sae.linear import linearize

Family = Literal["local", "long-range", "induction", "mixed"]
BATCH = 16
CONTEXT = 64


@dataclass(frozen=True)
class HeadThemes:
    """The themes of the latents that belong most to one head.

    Attributes:
        themes: number of these latents with each tag, the commonest first.
        share: share of the commonest tag; 1 is a head with one theme.
    """

    head: int
    latents: tuple[int, ...]
    themes: tuple[tuple[str, int], ...]
    share: float


def head_themes(
    attribution: HeadAttribution, tags: Sequence[str | None], n: int = 10
) -> tuple[HeadThemes, ...]:
    """Each head's `n` latents of largest share, by their tags.

    In the paper people read the ten latents and judged whether they have one theme; 14 of GPT-2's
    144 heads do. Here a tag is the theme: the grammar's feature that a latent finds best, or the
    token that it fires on most. Each untagged latent (None) counts as a theme of its own.

    Raises:
        UsageError: the number of tags is not the number of latents.
    """
    if len(tags) != len(attribution.shares):
        raise UsageError(
            f"Got {len(tags)} tags for {len(attribution.shares)} latents; give one for each."
        )
    found = []
    for head in range(attribution.shares.shape[1]):
        latents = attribution.top_latents(head, n).tolist()
        named = Counter(tags[i] if tags[i] is not None else f"latent {i}" for i in latents)
        themes = tuple((str(tag), count) for tag, count in named.most_common())
        found.append(HeadThemes(head, tuple(latents), themes, themes[0][1] / len(latents)))
    return tuple(found)


def polysemantic_share(heads: Sequence[HeadThemes], *, one_theme: float | int = 0.9) -> float:
    """The share of heads whose commonest theme covers less than `one_theme` of their latents."""
    return sum(head.share < one_theme for head in heads) / len(heads)


@dataclass(frozen=True)
class PrefixInduction:
    """Attention to the token after an earlier copy, by the length of the copied prefix.

    Attributes:
        lengths: lengths of the prefix, the current token included.
        scores: mean attention over random sequences.
    """

    lengths: tuple[int, ...]
    scores: Float[Tensor, "length layer head"]

    figure = drawing.figure


@torch.no_grad()
def prefix_induction(
    lm: LanguageModel,
    pool: Int[Tensor, " token"],
    lengths: Sequence[int] = tuple(range(1, 10)),
    *,
    n: int = 64,
    seed: int = 0,
) -> PrefixInduction:
    """How long a repeated prefix must be for each head to attend to the token after its copy.

    Sequences are random tokens of `pool` without repeats. The p tokens from a place a1 are copied
    to a later place a2. The score is the attention from a2 + p - 1 to a1 + p.

    Args:
        lm: the model.
        pool: tokens to draw from, without special ones.
        lengths: prefix lengths p.
        n: sequences per length (paper: 400).
        seed: decides the sequences.

    Raises:
        UsageError: the pool is too small.
    """
    size = min(CONTEXT, lm.info.n_ctx)
    if len(pool.unique()) < size or max(lengths) > size // 4:
        raise UsageError(
            f"The pool has {len(pool.unique())} tokens and the longest prefix {max(lengths)}; "
            f"sequences of {size} need {size} different tokens and prefixes of at most {size // 4}."
        )
    generator, weights = torch.Generator().manual_seed(seed), model_weights(lm, torch.float32)
    scores = []
    for p in lengths:
        tokens, first, second = _copied(pool.unique(), p, n, size, generator)
        if lm.info.bos_token_id is not None:
            tokens[:, 0] = lm.info.bos_token_id
        parts = []
        for rows in torch.arange(n).split(BATCH):
            record = record_forward(lm, weights, tokens[rows])
            here = torch.arange(len(rows))
            dest, src = second[rows] + p - 1, first[rows] + p
            parts.append(torch.stack([x.pattern.cpu()[here, :, dest, src] for x in record.layers]))
        scores.append(torch.cat(parts, dim=1).mean(1))
    return PrefixInduction(tuple(lengths), torch.stack(scores))


def _copied(
    pool: Int[Tensor, " token"], p: int, n: int, size: int, generator: torch.Generator
) -> tuple[Int[Tensor, "n pos"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Sequences, the place of the prefix (after the start), and the place of its copy."""
    tokens = torch.stack(
        [pool[torch.randperm(len(pool), generator=generator)[:size]] for _ in range(n)]
    )
    half = size // 2
    first = torch.randint(1, half - p, (n,), generator=generator)
    second = torch.randint(half + 1, size - p + 1, (n,), generator=generator)
    rows, steps = torch.arange(n)[:, None], torch.arange(p)
    tokens[rows, second[:, None] + steps] = tokens[rows, first[:, None] + steps]
    return tokens, first, second


@dataclass(frozen=True)
class LatentFamily:
    """The sources of an attention latent's value, over the places where it fires.

    Attributes:
        n_fired: number of these places.
        local, induction, distant: shares of |contribution| from these kinds of sources; they sum to
            1.
        family: the kind with more than half, or mixed.
    """

    latent: int
    n_fired: int
    local: float
    induction: float
    distant: float

    @property
    def family(self) -> Family:
        """The kind of source with more than half of the contributions, or mixed."""
        if self.induction > 0.5:
            return "induction"
        if self.local > 0.5:
            return "local"
        return "long-range" if self.distant > 0.5 else "mixed"


@torch.no_grad()
def latent_families(
    lm: LanguageModel,
    host: Host,
    tokens: Int[Tensor, "batch pos"],
    *,
    window: int = 3,
) -> tuple[LatentFamily, ...]:
    """The latents of an attention SAE by where they read, the most active first.

    A source is `induction` if it follows an earlier copy of the current token, else `local` up to
    `window` tokens back, else distant. The first token, an attention sink, does not count as a
    source.

    Raises:
        UsageError: the SAE reads neither hook_z nor attention's output.
    """
    if host.place.kind not in OF_ATTENTION:
        raise UsageError(
            f"{host.name} reads {host.reads}; families need attn.hook_z or hook_attn_out."
        )
    weights, d_sae = model_weights(lm, torch.float32), host.sae.d_sae
    total = torch.zeros(3, d_sae, dtype=torch.float64)
    fired = torch.zeros(d_sae, dtype=torch.long)
    for part in tokens.split(BATCH):
        layer = record_forward(lm, weights, part).layers[host.place.layer]
        kinds = _source_kinds(part.cpu(), window)
        for context in range(len(part)):
            row, latent, read = _readers(host, weights, layer, part, context)
            for entries in torch.arange(len(row)).split_with_sizes(
                torch.bincount(row, minlength=part.shape[1]).tolist()
            ):
                if not len(entries):
                    continue
                dest = int(row[entries[0]])
                given = dfa(layer.pattern[context, :, dest], layer.v[context], read[entries])
                size = given.sum(-1).abs().cpu().double()
                shares = size @ kinds[:, context, dest].T
                shares /= shares.sum(1, keepdim=True).clamp_min(1e-12)
                total[:, latent[entries]] += shares.T
                fired[latent[entries]] += 1
    return _families(total, fired)


def _readers(
    host: Host, weights: ModelWeights, layer: LayerRecord, tokens: Int[Tensor, "b pos"], at: int
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, "n d_in"]]:
    """Position and number of each latent that fires in a context, and what it reads of z."""
    heads = host.place.kind == "heads"
    x = layer.z_cat if heads else layer.attn_raw if host.before_post else layer.attn_out
    codes = linearize(host.sae, x[at], host.domain.covers(tokens[at], x[at]))
    read = codes.encoder[: len(codes)]
    if not heads:
        scale = None if host.before_post else layer.attn_post_scale[at, codes.row]
        own = weights.layers[host.place.layer]
        read, _ = read_through_output(own, read, codes.constant, scale)
    return codes.row.cpu(), codes.latent.cpu(), read


def _families(
    total: Float[Tensor, "3 d_sae"], fired: Int[Tensor, " d_sae"]
) -> tuple[LatentFamily, ...]:
    order = fired.argsort(descending=True, stable=True)
    return tuple(
        LatentFamily(i, int(fired[i]), *(total[:, i] / fired[i]).tolist())
        for i in order[fired[order] > 0].tolist()
    )


def _source_kinds(
    tokens: Int[Tensor, "batch pos"], window: int
) -> Float[Tensor, "3 batch dest src"]:
    """1 where a source is local, induction or distant for a destination; each is exactly one."""
    n = tokens.shape[1]
    places = torch.arange(n)
    back = places[:, None] - places[None]
    behind = torch.zeros(len(tokens), n, n, dtype=torch.bool)
    behind[:, :, 1:] = tokens[:, :, None] == tokens[:, None, :-1]
    behind &= back >= 0
    # The token after the current one is later, so it is never counted.
    local = (back >= 0) & (back <= window) & ~behind
    distant = (back > window) & ~behind
    kinds = torch.stack([local, behind, distant]).double()
    kinds[..., 0] = 0
    return kinds
