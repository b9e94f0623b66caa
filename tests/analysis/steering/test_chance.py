"""What random directions score, against scoring them as an SAE's own latents."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis.steering.cases import MIDDLE, PROMPT, steerable

from saelab.analysis.steering.chance import _directions, chance_scores
from saelab.analysis.steering.lens import lens_tokens
from saelab.analysis.steering.measures import ScoreOptions, output_scores
from saelab.analysis.steering.records import SteeringScores
from saelab.lm.prompt import encode_prompt

N = 24


def scores_of(model, options) -> SteeringScores:
    """Only what chance is taken from: the prompt, the scale, the options."""
    tokens = encode_prompt(model.lm, PROMPT)
    rows = (np.arange(N), np.ones(N, dtype=np.int64))
    lens = lens_tokens(model.lm, model.writes, model.sae.W_dec, options.n_lens)
    found = output_scores(model, tokens, rows, lens, options)
    none = np.zeros(0)
    empty = dict.fromkeys(("input", "output", "probability"), none)
    whole = {name: none.astype(int) for name in ("latent", "sign", "n_examples", "rank")}
    places = {name: np.zeros((0, 1), dtype=int) for name in ("lens", "peaks")}
    facts = {
        "prompt_tokens": tokens.tolist(),
        "a_max": found.a_max,
        "options": options.model_dump(mode="json"),
    }
    return SteeringScores(**empty, **whole, **places, vocabulary=(), facts=facts)


@pytest.mark.parametrize("form", ["difference", "paper", "repository"])
@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_they_score_what_latents_that_write_them_would(perturbed_lm, form, kind):
    model = steerable(perturbed_lm)
    if kind == "transcoder":
        model = replace(model, reads=MIDDLE, writes="blocks.1.hook_mlp_out")
    options = ScoreOptions(prompt=PROMPT, n_lens=2, form=form)
    found = chance_scores(model, scores_of(model, options), n=N)
    directions = _directions(model, N, 0)
    tokens = encode_prompt(perturbed_lm, PROMPT)
    lens = lens_tokens(perturbed_lm, model.writes, directions, 2)
    seen = perturbed_lm.capture(tokens[None], [model.reads])[model.reads][:, -1]
    codes = model.sae.encode(seen)
    expected = []
    for direction, promised in zip(directions, lens, strict=True):

        def write(value, direction=direction):
            base = model.sae.decode(codes, seen) if form == "paper" else value[:, -1]
            value = value.clone()
            value[:, -1] = base + 10 * codes.dense().abs().max() * direction
            return value

        logits = [perturbed_lm.logits(tokens[None], e)[0, -1] for e in ({model.writes: write}, {})]
        p = []
        for probabilities in (each.softmax(-1) for each in logits):
            best = probabilities[promised].max()
            p.append((1 - (probabilities > best).sum() / len(probabilities)) * best)
        expected.append(float(p[0] if form == "repository" else p[0] - p[1]))
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert np.abs(found).max() > 0.1


def test_directions_are_as_long_as_decoder_rows_and_point_anywhere(perturbed_lm):
    model = steerable(perturbed_lm)
    with torch.no_grad():
        model.sae.W_dec.mul_(torch.linspace(0.5, 3, N)[:, None])
    lengths = {round(float(row.norm()), 3) for row in model.sae.W_dec}
    directions = _directions(model, 400, 1)
    assert {round(float(row.norm()), 3) for row in directions} <= lengths
    unit = torch.nn.functional.normalize(directions, dim=1)
    assert unit.mean(dim=0).norm() < 0.15
    assert not torch.equal(directions, _directions(model, 400, 2))
