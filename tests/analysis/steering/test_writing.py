"""Text comes out the same whether a model reads on or reads every context anew."""

from typing import Any

import pytest
import torch
from analysis.steering.cases import MIDDLE, PROMPT, steerable
from stand_in import answer_as

from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.writing import Sampling, edits_for, generate, plain
from saelab.lm.prompt import encode_prompt

STOP = 9
SAMPLING = Sampling(n_tokens=8, temperature=0.8, seed=2)


class Rereads:
    """The model without reading on."""

    reads_on = False

    def __init__(self, lm):
        self.lm = lm
        self.n_read = 0
        answer_as(self, lm)

    def run(self, tokens, *, edits=None, hooks=()):
        self.n_read += tokens.numel()
        return self.lm.run(tokens, edits=edits, hooks=hooks)


def rereading(lm) -> Any:
    return Rereads(lm)


@pytest.fixture
def prompts(perturbed_lm):
    tokens = encode_prompt(perturbed_lm, PROMPT)
    other = tokens.clone()
    other[2] = 7
    return torch.stack([tokens, other, tokens])


def changes(positions):
    return [
        Intervention(latents=(latent,), amount=amount, positions=positions)
        for latent, amount in ((3, 6.0), (5, 2.0), (11, -4.0))
    ]


@pytest.mark.parametrize("positions", ["last", "all", 2])
@pytest.mark.parametrize("stop", [None, STOP])
def test_reading_on_writes_what_reading_anew_writes(perturbed_lm, prompts, positions, stop):
    model = steerable(perturbed_lm)
    anew = rereading(perturbed_lm)
    for edits in (plain, edits_for(model, changes(positions), prompts.shape[1])):
        found = generate(perturbed_lm, prompts, SAMPLING, edits, stop=stop)
        expected = generate(anew, prompts, SAMPLING, edits, stop=stop)
        assert found.tolist() == expected.tolist()
    assert anew.n_read > 0


def test_a_transcoder_steers_alike_when_the_model_reads_on(perturbed_lm, prompts):
    from dataclasses import replace

    model = replace(steerable(perturbed_lm), reads=MIDDLE, writes="blocks.1.hook_mlp_out")
    edits = edits_for(model, changes("last"), prompts.shape[1])
    found = generate(perturbed_lm, prompts, SAMPLING, edits)
    assert found.tolist() == generate(rereading(perturbed_lm), prompts, SAMPLING, edits).tolist()
    assert found.tolist() != generate(perturbed_lm, prompts, SAMPLING).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_texts_end_with_their_stop_and_are_else_what_they_were(perturbed_lm, prompts, seed):
    many = prompts.repeat(8, 1)
    sampling = SAMPLING.model_copy(update={"seed": seed, "temperature": 2.0})
    whole = generate(perturbed_lm, many, sampling)
    ended = generate(perturbed_lm, many, sampling, stop=STOP)
    n_ended = 0
    for text, cut in zip(whole.tolist(), ended.tolist(), strict=True):
        length = text.index(STOP) + 1 if STOP in text else len(text)
        n_ended += length < len(text)
        assert cut[:length] == text[:length]
        assert set(cut[length:]) <= {STOP}
    assert n_ended > 0


def test_equal_prompts_and_only_new_tokens_are_read(perturbed_lm, prompts, monkeypatch):
    shapes = []
    read_on = perturbed_lm.read_on

    def seen(tokens, past, edits=None):
        shapes.append(tuple(tokens.shape))
        return read_on(tokens, past, edits)

    monkeypatch.setattr(perturbed_lm, "read_on", seen)
    assert perturbed_lm.reads_on
    shapes.clear()
    n = prompts.shape[1]
    edits = edits_for(steerable(perturbed_lm), changes("last"), n)
    generate(perturbed_lm, prompts, Sampling(n_tokens=3), edits)
    assert shapes == [(2, n - 1), (3, 1), (3, 1), (3, 1)]


def test_a_prompt_of_one_token_is_continued(perturbed_lm):
    one = torch.tensor([[4]])
    found = generate(perturbed_lm, one, Sampling(n_tokens=4))
    assert found.tolist() == generate(rereading(perturbed_lm), one, Sampling(n_tokens=4)).tolist()
