"""Steering changes nothing where the SAE was not trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis.steering.cases import PROMPT, steerable

from saelab.analysis.steering.edits import direction_edit, latent_edits
from saelab.analysis.steering.generate import generate
from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.analysis.steering.measures import ScoreOptions, output_scores
from saelab.analysis.steering.self_test import verify
from saelab.analysis.steering.writing import Sampling, edits_for
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.prompt import encode_prompt
from saelab.training.domain import Domain

CHANGE = Intervention(latents=(3,), amount=4.0, positions="all")


@pytest.fixture
def tokens(perturbed_lm):
    return encode_prompt(perturbed_lm, PROMPT)[None]


@pytest.fixture
def model(perturbed_lm, tokens) -> Host:
    """Two of the prompt's five words have a norm that training left out."""
    free = steerable(perturbed_lm)
    x = perturbed_lm.capture(tokens, free.sites)[free.writes]
    norms = x[0, 1:].norm(dim=-1).sort().values
    return replace(free, domain=Domain((0,), float(norms[2:4].mean())))


def covered(model, tokens):
    return model.domain.covers(tokens, model.lm.capture(tokens, [model.writes])[model.writes])


@pytest.mark.parametrize("op", ["add", "scale", "clamp", "ablate"])
@pytest.mark.parametrize("error", ["keep", "drop"])
def test_massive_rows_keep_their_bits_and_the_self_test_counts_them(model, tokens, op, error):
    change = Intervention(latents=(3, 8), op=op, amount=2.5, error=error, positions="all")
    mask = position_mask(model.lm, tokens, "all", tokens.shape[1], model.domain)
    plain = model.lm.capture(tokens, [model.writes])[model.writes]
    edits = latent_edits(model, [change], mask)
    done = model.lm.run(tokens, edits=edits, hooks=[model.writes]).activations[model.writes]
    left = ~covered(model, tokens)
    assert int(left.sum()) == 3
    assert torch.equal(done[left], plain[left])
    # `verify` decodes dense codes, a second method, for the others.
    effect = verify(model, tokens, [change], mask)
    assert (effect.n_rows, effect.n_left_out) == (3, 2)
    if error == "drop":
        assert bool((done[~left] != plain[~left]).any(-1).all())


def test_a_direction_is_added_at_the_same_rows(model, tokens):
    mask = position_mask(model.lm, tokens, "all", tokens.shape[1], model.domain)
    edit = direction_edit(model, model.sae.W_dec[3], torch.ones(1), mask)
    plain = model.lm.capture(tokens, [model.writes])[model.writes]
    assert torch.equal((edit(plain) != plain).any(-1), covered(model, tokens))


def test_where_no_row_is_left_nothing_changes_and_that_is_said(model, tokens):
    nowhere = replace(model, domain=Domain((), 1e-6))
    mask = position_mask(model.lm, tokens, "all", tokens.shape[1], nowhere.domain)
    effect = verify(nowhere, tokens, [CHANGE], mask)
    assert (effect.n_rows, effect.n_changed, effect.shift, effect.n_left_out) == (0, 0, 0.0, 5)


def test_positions_and_tokens_that_training_left_out_are_not_in_the_mask(perturbed_lm, tokens):
    mask = position_mask(perturbed_lm, tokens, "all", 6, Domain((4,), None, first_position=3))
    assert mask[0].tolist() == [p >= 3 and int(tokens[0, p]) != 4 for p in range(6)]


def test_text_is_written_alike_with_and_without_what_the_model_keeps(model, tokens):
    sampling, edits = Sampling(n_tokens=6), edits_for(model, [CHANGE], tokens.shape[1])
    found = generate(model.lm, tokens, sampling, edits)[0].tolist()
    context = tokens
    for said in found:
        token = int(model.lm.logits(context, edits(context))[0, -1].argmax())
        assert said == token
        context = torch.cat([context, torch.tensor([[token]])], dim=1)
    free = replace(model, domain=Domain())
    other = generate(model.lm, tokens, sampling, edits_for(free, [CHANGE], tokens.shape[1]))
    assert not bool(covered(model, context).all())
    assert other[0].tolist() != found


def test_a_prompt_that_ends_where_the_sae_was_not_trained_has_no_scores(model, tokens):
    nowhere = replace(model, domain=Domain((), 1e-6))
    latent, lens = np.zeros(1, dtype=np.int64), torch.zeros(1, 3).long()
    with pytest.raises(UsageError, match="not applied at the last token of the prompt"):
        output_scores(nowhere, tokens[0], (latent, latent + 1), lens, ScoreOptions())
