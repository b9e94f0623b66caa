"""Output scores of random directions, to compare scores with.

Any direction raises k tokens of the vocabulary most, and the model writes one of them once enough
of the direction is added. On a small vocabulary this passes the paper's threshold.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.analysis.steering.edits import latent_edits
from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.analysis.steering.lens import lens_tokens
from saelab.analysis.steering.measures import ScoreOptions, confidence
from saelab.analysis.steering.records import SteeringScores
from saelab.host.host import Host
from saelab.sae.decoder import atoms_of

N_DIRECTIONS = 256


def chance_scores(
    host: Host, scores: SteeringScores, *, n: int = N_DIRECTIONS, seed: int = 0
) -> Float[ndarray, " direction"]:
    """S_out of random directions with decoder rows' norms, with prompt and options of `scores`."""
    return random_directions(host, scores, n=n, seed=seed)[1].output


@torch.no_grad()
def random_directions(
    host: Host, scores: SteeringScores, *, n: int = N_DIRECTIONS, seed: int = 0
) -> tuple[Float[Tensor, "direction d_in"], SteeringScores]:
    """Random directions with decoder rows' norms, and their scores as if they were latents.

    Prompt and options are those of `scores`. A direction has no input score.
    """
    options = ScoreOptions.model_validate(scores.facts["options"])
    directions, number = _directions(host, n, seed), np.arange(n)
    lens = lens_tokens(host.lm, host.writes, directions, options.n_lens)
    output, rank, probability = _scored(host, scores, directions, lens)
    none = np.zeros_like(number)
    as_latents = replace(
        scores,
        latent=number,
        sign=none + 1,
        input=np.full(n, np.nan),
        n_examples=none,
        output=output,
        rank=rank,
        probability=probability,
        lens=lens.cpu().numpy(),
        peaks=np.full((n, scores.peaks.shape[1]), -1),
    )
    return directions, as_latents


def _scored(
    host: Host,
    scores: SteeringScores,
    directions: Float[Tensor, "direction d_in"],
    lens: Int[Tensor, "direction k"],
) -> list[ndarray]:
    """S_out, rank and probability of each direction."""
    options = ScoreOptions.model_validate(scores.facts["options"])
    tokens = torch.tensor(scores.facts["prompt_tokens"], device=host.lm.device)[None]
    batch = tokens.expand(len(directions), -1)
    error = "drop" if options.form == "paper" else "keep"
    changes = [
        Intervention(latents=(i,), amount=options.strength, error=error)
        for i in range(len(directions))
    ]
    mask = position_mask(host.lm, batch, "last", tokens.shape[1], host.domain)
    steered = host.lm.run(batch, edits=latent_edits(host, changes, mask, directions)).behind()
    plain = host.lm.run(tokens).behind().logits().float().softmax(-1)
    parts: list[tuple[Tensor, ...]] = []
    for part in steered.pieces():
        p = steered.logits(part).float().softmax(-1)
        found = confidence(p, lens[part])
        score = found.value
        if options.form != "repository":
            score = score - confidence(plain.expand_as(p), lens[part]).value
        parts.append((score.double(), found.rank, found.probability))
    return [torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True)]


def _directions(host: Host, n: int, seed: int) -> Float[Tensor, "direction d_in"]:
    W_dec = host.sae.W_dec
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, W_dec.shape[1], generator=generator).to(W_dec.device)
    rows = np.random.default_rng(seed).integers(len(W_dec), size=n)
    atoms = atoms_of(host.sae, torch.from_numpy(rows).to(W_dec.device))
    drawn = drawn.to(atoms.dtype)
    return torch.nn.functional.normalize(drawn, dim=1) * atoms.norm(dim=1, keepdim=True)
