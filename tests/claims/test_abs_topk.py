"""AbsTopK (arXiv 2510.00404): a lower error at equal k, and two poles in one latent."""

from itertools import product

import pytest
import torch
from claims.measure import fvus, precision, trained

from saelab.claims.abs_topk import SIGNED
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.training.recipes import TINY_EARLY, TINY_RESIDUAL, few_latents, short_run

OPPOSITES = (
    ("noun_singular", "noun_plural"),
    ("verb_singular", "verb_plural"),
    ("name_female", "name_male"),
    ("noun_female", "noun_male"),
    ("positive_word", "negative_word"),
    ("subject_singular", "subject_plural"),
    ("referent_female", "referent_male"),
    ("document_positive", "document_negative"),
)
FIRINGS = 20


@pytest.mark.slow
def test_with_signed_features_it_does_with_half_the_latents_what_topk_does(setting):
    """Measured, seeds 0 to 5: FVU 0.20 to 0.22 against 0.51 to 0.52, and 0.22 to 0.24 at 2x."""
    assert SIGNED.outcome(setting).verdict == "reproduced"


@pytest.mark.exhaustive
def test_where_latents_are_few_it_leaves_less_of_the_tiny_models_activations(
    store, held_out, tmp_path
):
    """Measured, seeds 0 to 3: FVU 0.095 to 0.097 against 0.107 to 0.110.

    With 256 latents and more it is the other way round here (see the recipe).
    """
    saes = trained(few_latents(store, TINY_EARLY), tmp_path, seeds=2)
    error = {name: fvus(each, held_out.x[TINY_EARLY]) for name, each in saes.items()}
    assert max(error["abs-topk"]) < 0.96 * min(error["topk"])


@pytest.mark.exhaustive
def test_some_latents_are_opposite_features_of_the_grammar_by_their_sign(store, held_out, tmp_path):
    """Of the firings of either sign most are on tokens of one of two opposite labels.

    Measured, seeds 0 to 3: the best latent has 68 to 85 % on both sides (document_positive and
    document_negative, which 26 % and 21 % of all tokens have, or the subject's number).
    """
    config = short_run(store, TINY_RESIDUAL, AbsTopKConfig(d_sae=512, k=4))
    for sae in trained({"abs-topk": config}, tmp_path, seeds=2)["abs-topk"]:
        codes = sae.encode(held_out.x[TINY_RESIDUAL])
        best = max(
            both_poles(codes, sign, *(held_out.labels[name] for name in pair))
            for pair, sign in product(OPPOSITES, (1, -1))
        )
        assert best > 0.55


def both_poles(codes, sign, label, opposite) -> float:
    """The best latent's precision on its worse side, of those that fire often with both signs."""
    there, n_there = precision(codes, sign, label)
    back, n_back = precision(codes, -sign, opposite)
    often = (n_there >= FIRINGS) & (n_back >= FIRINGS)
    return float(torch.minimum(there, back)[often].max()) if often.any() else 0.0
