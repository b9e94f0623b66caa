"""Scores of arXiv 2505.20063 as the authors' code computes them, in float64 by plain transformers.

What their code does, beside the paper's equations: the lens is the final norm and the unembedding
of the decoder row; every position is encoded, but only the last one's latent gains 10 times the
largest activation there; the SAE's error is added back; the score is P of the steered model alone
(the form `repository`). For the input score, the token at each sentence's peak is looked up in the
lens.
"""

import numpy as np
import pytest
import torch
from analysis.steering.cases import MIDDLE, PROMPT, perturbed, save_checkpoint, steerable
from conftest import SENTENCE
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.steering.lens import lens_tokens
from saelab.analysis.steering.measures import ScoreOptions, output_scores
from saelab.analysis.steering.scores import score_latents
from saelab.lm.prompt import encode_prompt

N_LENS, STRENGTH = 3, 10.0


class TheirSAE:
    """A TopK SAE by its formula."""

    def __init__(self, sae) -> None:
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (
            getattr(sae, name).detach().double() for name in names
        )
        self.k = sae.config.k

    def encode(self, x):
        acts = ((x.double() - self.b_dec) @ self.W_enc + self.b_enc).relu()
        best = acts.topk(self.k, dim=-1)
        return torch.zeros_like(acts).scatter(-1, best.indices, best.values)

    def decode(self, codes):
        return codes @ self.W_dec + self.b_dec


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    directory = save_checkpoint(tmp_path_factory.mktemp("plain"), perturbed)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    return model, AutoTokenizer.from_pretrained(directory)


@torch.no_grad()
def their_output_score(model, ids, sae, latent) -> tuple[list[int], float]:
    """The lens tokens and P of the steered model."""
    logits = model.lm_head(model.transformer.ln_f(sae.W_dec[latent]))
    lens = logits.softmax(0).topk(N_LENS).indices.tolist()

    def amplify(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        codes = sae.encode(x)
        error = x - sae.decode(codes)
        codes[:, -1, latent] += STRENGTH * codes[:, -1].max()
        x = sae.decode(codes) + error
        return (x, *output[1:]) if isinstance(output, tuple) else x

    hook = model.transformer.h[0].register_forward_hook(amplify)
    p = model(ids).logits[0, -1].softmax(0)
    hook.remove()
    ranking = p.argsort(descending=True).tolist()
    rank = min(ranking.index(token) for token in lens)
    return lens, (1 - rank / len(p)) * float(p[lens].max())


def test_output_scores_and_lens_are_those_of_the_authors_code(theirs, perturbed_lm):
    model, tokenizer = theirs
    host = steerable(perturbed_lm, site=MIDDLE)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PROMPT)["input_ids"]]])
    tokens = encode_prompt(perturbed_lm, PROMPT)
    assert tokens.tolist() == ids[0].tolist()
    options = ScoreOptions(prompt=PROMPT, n_lens=N_LENS, strength=STRENGTH, form="repository")
    lens = lens_tokens(perturbed_lm, host.writes, host.sae.W_dec, N_LENS)
    rows = (np.arange(24), np.ones(24, dtype=np.int64))
    ours = output_scores(host, tokens, rows, lens, options)
    sae = TheirSAE(host.sae)
    for latent in range(24):
        promised, score = their_output_score(model, ids, sae, latent)
        assert lens[latent].tolist() == promised
        assert ours.score[latent] == pytest.approx(score, abs=1e-5)
    assert ours.score.max() > 0.6 > 0.2 > ours.score.min()


def test_input_scores_are_those_of_the_authors_code(featured_run, random_lm):
    """Every context's peak in float64, and of those the contexts where it is highest."""
    file, sae = FeatureFile(featured_run.features_path), featured_run.load_sae()
    contexts, site = torch.tensor(file["corpus/tokens"]).long(), featured_run.config.site
    x = random_lm.capture(contexts.clamp_min(0), [site])[site]
    special = torch.tensor(random_lm.info.special_token_ids)
    codes = TheirSAE(sae).encode(x)
    codes[(contexts < 0) | torch.isin(contexts, special)] = 0
    options = ScoreOptions(prompt=SENTENCE, n_lens=4, min_examples=1)
    found, seen = score_latents(featured_run, random_lm, None, options), set()
    for latent in range(sae.d_sae):
        peak = codes[..., latent].max(dim=1)
        best = peak.values.argsort(descending=True)[: file["top/context"].shape[1]]
        best = best[peak.values[best] > 0].tolist()
        lens = set(found.lens[latent].tolist())
        hits = [int(contexts[i, peak.indices[i]]) in lens for i in best]
        assert found.n_examples[latent] == len(hits)
        if hits:
            assert found.input[latent] == pytest.approx(np.mean(hits))
            seen.add(round(float(np.mean(hits)), 2))
    assert len(seen) > 3
