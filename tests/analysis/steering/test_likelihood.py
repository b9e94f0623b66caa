"""The likelihood of texts, each read once, is that of reading every text by itself."""

import pytest
import torch
from analysis.steering.test_writing import rereading

from saelab.analysis.steering import likelihood
from saelab.analysis.steering.generate import plain_log_probs
from saelab.analysis.steering.likelihood import log_likelihoods


@pytest.mark.parametrize("kind", [lambda lm: lm, rereading])
@pytest.mark.parametrize("at_once", [3, 100])
def test_it_is_the_sum_over_the_first_tokens(perturbed_lm, monkeypatch, kind, at_once):
    monkeypatch.setattr(likelihood, "TEXTS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, 14, (3, 4), generator=generator).repeat(4, 1)
    new = torch.randint(2, 14, (12, 5), generator=generator)
    lengths = torch.tensor([1, 5, 3, 2, 5, 1, 4, 4, 2, 3, 5, 5])
    # Rows 0 and 3 have the same prompt and, up to their lengths, the same text.
    new[3], lengths[3] = new[0], lengths[0]
    found = log_likelihoods(kind(perturbed_lm), prompts, new, lengths)
    each = plain_log_probs(perturbed_lm, prompts, new).double()
    expected = torch.stack([row[:n].sum() for row, n in zip(each, lengths.tolist(), strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_equal_texts_are_read_once_and_short_ones_stay_short(perturbed_lm, monkeypatch):
    shapes = []
    read_on = perturbed_lm.read_on

    def seen(tokens, past, edits=None):
        shapes.append(tuple(tokens.shape))
        return read_on(tokens, past, edits)

    assert perturbed_lm.reads_on
    monkeypatch.setattr(perturbed_lm, "read_on", seen)
    prompts = torch.tensor([[2, 3, 4]]).repeat(6, 1)
    new = torch.arange(5).repeat(6, 1) + 3
    new[:, 4] = torch.arange(6)
    found = log_likelihoods(perturbed_lm, prompts, new, torch.full((6,), 4))
    # The prompt but its last token, then that and three of the four tokens.
    assert shapes == [(1, 2), (1, 4)]
    assert found.unique().numel() == 1
