"""The laws of the metrics on a model and SAEs that have nothing at its default.

Zero biases and unit gains hide errors: a forgotten b_dec, b_enc, LayerNorm gain or bias changes
nothing where it is zero or one. Here none of them is.
"""

import pytest
import torch
from analysis.steering.cases import perturbed, random_sae, save_checkpoint
from evaluation.cases import contexts_of, measured

from saelab.evaluation.ablation import AblationTokens
from saelab.evaluation.density import DensityCounts
from saelab.evaluation.downstream import Downstream
from saelab.evaluation.reconstruction import Reconstruction
from saelab.evaluation.uniformity import UniformityTokens, centred_logit_gradients
from saelab.host.text import Text, TextBatch
from saelab.lm.load import load_language_model

HOOK = "blocks.0.hook_resid_post"
REACH = 10


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    directory = save_checkpoint(tmp_path_factory.mktemp("perturbed"), perturbed)
    return load_language_model(directory, device="cpu")


@pytest.fixture(scope="module", params=["topk", "abs-topk", "matching-pursuit", "jumprelu"])
def sae(request):
    return random_sae(request.param)


@pytest.fixture(scope="module")
def tokens(lm):
    high = lm.info.d_vocab
    return torch.randint(2, high, (3, REACH), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def x(lm, tokens):
    return lm.capture(tokens, [HOOK])[HOOK]


def test_nothing_is_at_its_default(lm, sae):
    for name, value in lm._bridge.original_model.named_parameters():
        if value.ndim == 1:
            assert value.std() > 0.1, name
    assert sae.b_dec.abs().min() > 0
    assert sae.b_dec.std() > 0.3


def test_an_ablation_takes_away_the_latents_part_and_nothing_else(lm, sae, tokens, x):
    """Second method: decode the codes without the latent, keep the error, run the whole model."""
    found = AblationTokens(lm, sae, HOOK, n_latents=24, reach=REACH)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    batch = TextBatch(0, contexts_of(tokens), tokens, mask, x[mask].float())
    found.update(batch, n_tokens=3, draw=torch.Generator().manual_seed(0))
    plain, expected = lm.logits(tokens), []
    for context in range(len(tokens)):
        here = x[context, :1]
        dense = sae.encode(here).dense()
        error = here - (dense @ sae.W_dec + sae.b_dec)
        for latent in dense[0].nonzero()[:, 0].tolist():
            without = dense.clone()
            without[0, latent] = 0
            row = (without @ sae.W_dec + sae.b_dec + error)[0]

            def edit(value, row=row, context=context):
                moved = value.clone()
                moved[context, 0] = row
                return moved

            delta = (lm.logits(tokens, {HOOK: edit}) - plain)[context].double()
            delta -= delta.median(-1, keepdim=True).values
            expected.append(float(delta.abs().sum() ** 2 / delta.pow(2).sum() / delta.numel()))
    part = measured(found.results()).latents
    assert part.n == len(expected)
    assert part.mean == pytest.approx(sum(expected) / len(expected), rel=5e-3)
    assert 1 / (REACH * lm.info.d_vocab) <= part.mean <= 1


def test_importance_is_the_slope_of_the_logit_along_each_latents_part(lm, sae, tokens, x):
    """Second method: shrink a latent a little in the live model, see what the logit loses."""
    position = torch.tensor([2, 5, 8])
    context = torch.arange(3)
    read, gradient = centred_logit_gradients(lm, HOOK, tokens, position)
    dense = sae.encode(read).dense()
    effects = dense * (gradient @ sae.W_dec.T)

    def centred(latent, step):
        def edit(value):
            moved = value.clone()
            moved[context, position] += step * dense[:, latent, None] * sae.W_dec[latent]
            return moved

        logits = lm.logits(tokens, {HOOK: edit})[context, position].double()
        return logits[context, tokens[context, position + 1]] - logits.mean(1)

    strongest = int(effects.abs().sum(dim=0).argmax())
    slope = (centred(strongest, 1e-3) - centred(strongest, -1e-3)) / 2e-3
    assert torch.allclose(effects[:, strongest].double(), slope, rtol=0.02, atol=0.02)
    assert slope.abs().max() > 0.1
    measure = UniformityTokens(lm, sae, HOOK, seed=0)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    measure.update(Text(0, contexts_of(tokens), tokens, mask), n_tokens=9)
    found = measured(measure.results())
    assert 1 / found.l0 <= found.r <= 1


def test_the_original_costs_nothing_and_masked_positions_are_untouched(lm, sae, tokens, x):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 3] = False
    costs_nothing, costs_much = Downstream(lm.device), Downstream(lm.device)
    costs_nothing.update(lm, HOOK, tokens, mask, x[mask])
    costs_much.update(lm, HOOK, tokens, mask, sae.reconstruct(x[mask]))
    plain, spliced = costs_nothing.results(), costs_much.results()
    assert plain["ce_spliced"] == plain["ce_plain"] == spliced["ce_plain"]
    assert plain["kl"] == 0
    assert spliced["kl"] > 0.1


def test_fvu_is_one_less_the_explained_variance_and_l0_the_sum_of_frequencies(sae, x):
    rows = x.flatten(0, 1)
    codes = sae.encode(rows)
    x_hat = sae.reconstruct(rows)
    cpu, d_in = torch.device("cpu"), rows.shape[1]
    whole, halves = (Reconstruction(d_in, sae.d_sae, cpu) for _ in range(2))
    whole.update(rows, x_hat, codes)
    for part in (slice(0, 11), slice(11, None)):
        halves.update(rows[part], sae.reconstruct(rows[part]), sae.encode(rows[part]))
    wide, error = rows.double(), (rows.double() - x_hat.double())
    explained = 1 - float(error.pow(2).sum() / (wide - wide.mean(0)).pow(2).sum())
    assert whole.results()["fvu"] == pytest.approx(1 - explained, rel=1e-6)
    assert halves.results()["fvu"] == pytest.approx(whole.results()["fvu"], rel=1e-6)
    density = DensityCounts(sae.d_sae, cpu)
    density.update(codes)
    assert sum(density.results().frequency) == pytest.approx(whole.results()["l0"])
