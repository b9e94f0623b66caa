"""Steering a transcoder's latents: changed where it writes, measured where it reads."""

from dataclasses import replace

import pytest
import torch
from analysis.circuits.cases import random_transcoder
from conftest import SENTENCE

from saelab.analysis.features.collect import collect_features
from saelab.analysis.features.options import FeatureOptions
from saelab.analysis.steering.edits import a_max, latent_edits
from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.measures import ScoreOptions
from saelab.analysis.steering.scores import score_latents
from saelab.analysis.steering.self_test import verify
from saelab.host.host import Host
from saelab.training.run import Run

READS, WRITES = "blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module")
def model(perturbed_lm) -> Host:
    sae = random_transcoder(perturbed_lm, 1, skip=True).sae
    return replace(Host.at(perturbed_lm, sae, READS, WRITES), maxima=torch.ones(sae.d_sae))


@pytest.fixture
def tokens():
    return torch.tensor([[0, 3, 5, 7, 4]])


def activations(model, tokens, change=None):
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, -1] = True
    edits = latent_edits(model, [change], mask) if change else {}
    found = model.lm.run(tokens, edits=edits, hooks=[READS, WRITES]).activations
    return found[READS][0], found[WRITES][0]


def test_amounts_are_in_units_of_what_the_source_activates(model, tokens):
    read, written = activations(model, tokens)
    size = float(a_max(model.sae.encode(read[-1:]))[0])
    assert size > 0
    same, after = activations(model, tokens, Intervention(latents=(3,), amount=2.0))
    expected = written[-1] + 2 * size * model.sae.W_dec[3]
    torch.testing.assert_close(after[-1], expected, rtol=0, atol=1e-5)
    assert torch.equal(after[:-1], written[:-1])
    assert torch.equal(same, read)


def test_without_the_error_the_reconstruction_has_the_skip_connection(model, tokens):
    read, _ = activations(model, tokens)
    change = Intervention(latents=(3,), op="scale", amount=1.0, error="drop")
    _, after = activations(model, tokens, change)
    torch.testing.assert_close(after[-1], model.sae.reconstruct(read[-1:])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("op", ["add", "scale", "clamp", "ablate"])
@pytest.mark.parametrize("error", ["keep", "drop"])
def test_every_change_is_what_the_dense_codes_ask_for(model, tokens, op, error):
    read, _ = activations(model, tokens)
    latent = int(model.sae.encode(read[-1:]).indices[0, 0])
    change = Intervention(latents=(latent,), op=op, amount=0.5, error=error)
    effect = verify(model, tokens, [change], tokens > 3)
    assert effect.n_rows == 3
    assert effect.n_changed > 0


@pytest.fixture(scope="module")
def featured(mlp_run, random_lm, tmp_path_factory):
    """The transcoder into the MLP's hidden units, with its features."""
    import shutil

    run = Run(shutil.copytree(mlp_run.path, tmp_path_factory.mktemp("featured") / "run"))
    collect_features(run, random_lm, FeatureOptions(n_tokens=200, batch_size=8))
    return run


def test_a_runs_logits_are_those_of_its_decoder_where_it_writes(featured, random_lm):
    from saelab.analysis.feature_file import FeatureFile

    file = FeatureFile(featured.features_path)
    sae = featured.load_sae()
    effects = random_lm.logit_effects("blocks.1.mlp.hook_post", sae.W_dec)
    assert random_lm.logit_effects("blocks.1.ln2.hook_out", sae.W_dec[:, :16]) is None
    top = torch.tensor(file["logits/top_values"])
    torch.testing.assert_close(top[:, 0], effects.max(dim=1).values)
    assert file.facts["hook"] == "blocks.1.ln2.hook_out"
    assert file.facts["target_hook"] == "blocks.1.mlp.hook_post"


def test_a_run_is_steered_and_scored_where_it_writes(featured, random_lm):
    model = Host.of_run(featured, random_lm)
    assert (model.reads, model.writes) == ("blocks.1.ln2.hook_out", "blocks.1.mlp.hook_post")
    scores = score_latents(featured, random_lm, [0, 1], ScoreOptions(prompt=SENTENCE, n_lens=4))
    assert len(scores.output) == 2
    assert scores.facts["hook"] == "blocks.1.mlp.hook_post"
