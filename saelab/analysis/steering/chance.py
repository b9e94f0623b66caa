"""Output scores of random directions: what a score is worth.

A direction promises k tokens of the vocabulary whatever it is, and the model says one of them once
enough of it is added. On a small vocabulary the paper's threshold is passed that way.
"""

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from saelab.analysis.steering.edits import latent_edits
from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.analysis.steering.lens import lens_tokens
from saelab.analysis.steering.measures import ScoreOptions, confidence
from saelab.analysis.steering.records import SteeringScores
from saelab.host.host import Host

N_DIRECTIONS = 256


@torch.no_grad()
def chance_scores(
    host: Host, scores: SteeringScores, *, n: int = N_DIRECTIONS, seed: int = 0
) -> Float[ndarray, " direction"]:
    """S_out of random directions as long as decoder rows, on the prompt and options of `scores`."""
    options = ScoreOptions.model_validate(scores.facts["options"])
    tokens = torch.tensor(scores.facts["prompt_tokens"], device=host.lm.device)[None]
    directions = _directions(host, n, seed)
    lens = lens_tokens(host.lm, host.writes, directions, options.n_lens)
    batch = tokens.expand(n, -1)
    # The splice of the scores themselves, told to change no latent.
    nothing = Intervention(latents=(0,), error="drop" if options.form == "paper" else "keep")
    mask = position_mask(host.lm, batch, "last", tokens.shape[1], host.domain)
    edits = latent_edits(host, [nothing], mask)
    splice = edits[host.writes]

    def push(value: Float[Tensor, "direction pos d_in"]) -> Float[Tensor, "direction pos d_in"]:
        value = splice(value).clone()
        value[:, -1] += options.strength * scores.facts["a_max"] * directions
        return value

    steered = host.lm.run(batch, edits={**edits, host.writes: push}).behind()
    plain = host.lm.run(tokens).behind().logits().float().softmax(-1)
    parts = []
    for part in steered.pieces():
        p = steered.logits(part).float().softmax(-1)
        found = confidence(p, lens[part]).value
        if options.form != "repository":
            found = found - confidence(plain.expand_as(p), lens[part]).value
        parts.append(found)
    return torch.cat(parts).cpu().double().numpy()


def _directions(host: Host, n: int, seed: int) -> Float[Tensor, "direction d_in"]:
    W_dec = host.sae.W_dec
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, W_dec.shape[1], generator=generator).to(W_dec)
    rows = np.random.default_rng(seed).integers(len(W_dec), size=n)
    lengths = W_dec[torch.from_numpy(rows).to(W_dec.device)].norm(dim=1, keepdim=True)
    return torch.nn.functional.normalize(drawn, dim=1) * lengths
