"""Latents changed in the live model."""

import pytest
import torch
from analysis.circuits.cases import frozen_of

from saelab.analysis.circuits.edits import ablation_edits
from saelab.analysis.circuits.intervene import Change, intervene
from saelab.config import UsageError

LAST = "blocks.2.attn.hook_z"


@pytest.fixture(scope="module")
def firing(gpt64):
    """Every active latent: SAE, number, position."""
    frozen = frozen_of(gpt64, transcoder=2)
    return [
        (active.name, latent, row)
        for active in frozen.actives
        for latent, row in zip(active.codes.latent.tolist(), active.codes.row.tolist(), strict=True)
    ]


def test_nothing_chosen_and_a_factor_of_one_change_nothing(gpt64, saes, tokens, firing):
    for change in (Change([]), Change(firing, "scale", 1.0), Change([], "scale", 5.0)):
        found = intervene(gpt64, saes, tokens, change)
        assert torch.equal(found.before, found.after)
        assert torch.equal(found.before, gpt64.run(tokens[None]).behind().logits()[0])


def test_scaling_by_zero_is_ablating(gpt64, saes, tokens, firing):
    ablated = intervene(gpt64, saes, tokens, Change(firing[:4]))
    scaled = intervene(gpt64, saes, tokens, Change(firing[:4], "scale", 0.0))
    assert torch.equal(ablated.after, scaled.after)
    assert not torch.allclose(ablated.after, ablated.before)


def test_keeping_none_is_ablating_all(gpt64, saes, tokens):
    none = {d.name: torch.zeros(1, d.sae.d_sae, dtype=torch.bool) for d in saes}
    edits = ablation_edits(saes, tokens[None], none)
    expected = gpt64.run(tokens[None], edits=edits).behind().logits()[0]
    assert torch.equal(intervene(gpt64, saes, tokens, Change([], "keep only")).after, expected)


def test_scaling_a_latent_of_the_last_heads_adds_its_decoder_row(gpt64, saes, tokens):
    own = next(d for d in saes if d.name == LAST)
    others = [d for d in saes if d.place.depth < own.place.depth]
    frozen = frozen_of(gpt64)
    active = next(a for a in frozen.actives if a.name == LAST)
    entry = active.at[len(tokens) - 1].start
    latent, value = int(active.codes.latent[entry]), float(active.codes.values[entry])

    def added(z):
        z = z.clone()
        z[0, -1] += 2 * value * own.sae.W_dec[latent].to(z.dtype)
        return z

    expected = gpt64.logits(tokens[None], {LAST: added})[0, -1]
    place = (LAST, latent, len(tokens) - 1)
    found = intervene(gpt64, [*others, own], tokens, Change([place], "scale", 3.0))
    torch.testing.assert_close(found.after, expected)


def test_a_watched_latent_sees_what_is_before_it_and_not_itself(gpt64, saes, tokens, firing):
    watched = next(place for place in firing if place[0] == LAST)
    own = intervene(gpt64, saes, tokens, Change([watched]), watched=watched)
    assert own.latent is not None
    assert own.latent[0] == own.latent[1] != 0
    earlier = [place for place in firing if place[0] != LAST]
    found = intervene(gpt64, saes, tokens, Change(earlier), watched=watched)
    assert found.latent[0] == own.latent[0]
    assert found.latent[1] != found.latent[0]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("other", 0, 0), "not among the SAEs"),
        ((LAST, 10**6, 0), "has no latent 1000000 at position 0"),
        ((LAST, 0, 99), "has no latent 0 at position 99"),
        ((LAST, -1, 0), "has no latent -1"),
    ],
)
def test_what_does_not_exist_is_refused(gpt64, saes, tokens, place, message):
    with pytest.raises(UsageError, match=message):
        intervene(gpt64, saes, tokens, Change([place]))
