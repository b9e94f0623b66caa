"""Evaluating a transcoder: encoded where it reads, judged and spliced in where it writes."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from saelab.activations.arrays import write_arrays
from saelab.evaluation.arrays import evaluate_arrays
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.uniformity import centred_logit_gradients, contributions
from saelab.host.host import Host
from saelab.host.text import corpus_of, stream
from saelab.lm.edits import replace_rows
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.training.run import Run

READS, WRITES = "blocks.1.ln2.hook_out", "blocks.1.mlp.hook_post"
FULL = EvaluateOptions(suite="full", reach=3, batch_size=3, n_ablated_tokens=4, n_tokens=60)


@pytest.fixture(scope="module")
def run(mlp_run, tmp_path_factory):
    return Run(shutil.copytree(mlp_run.path, tmp_path_factory.mktemp("evaluated") / "run"))


@pytest.fixture(scope="module")
def result(run, random_lm):
    return evaluate(run, random_lm, FULL)


@pytest.fixture(scope="module")
def batches(run, random_lm):
    corpus = corpus_of(run, random_lm, "held-out")
    return list(stream(Host.of_run(run, random_lm), corpus, n_tokens=60, batch_size=3))


def test_a_batch_holds_what_is_read_and_what_is_written(batches, random_lm):
    for batch in batches:
        plain = random_lm.capture(batch.tokens, [READS, WRITES])
        assert torch.equal(batch.x, plain[READS][batch.mask])
        assert torch.equal(batch.wanted, plain[WRITES][batch.mask])


def test_fvu_is_that_of_the_target(result, run, batches):
    sae = run.load_sae()
    x, y = (torch.cat(parts) for parts in zip(*((b.x, b.wanted) for b in batches), strict=True))
    error = (y - sae.reconstruct(x)).double().pow(2).sum()
    expected = float(error / (y - y.mean(0)).double().pow(2).sum())
    assert result.reconstruction["fvu"] == pytest.approx(expected, rel=1e-4)


def test_the_splice_reads_the_source_and_replaces_the_target(result, run, random_lm, batches):
    """Cross-entropy by hand; the target's own activations would not even fit the encoder."""
    sae, total, zero, n = run.load_sae(), 0.0, 0.0, 0
    for batch in batches:
        kept = batch.mask[:, :-1] & batch.mask[:, 1:]
        target = batch.tokens[:, 1:][kept]
        for rows in (x_hat := sae.reconstruct(batch.x), torch.zeros_like(x_hat)):
            edits = {WRITES: replace_rows(batch.mask, rows)}
            logits = random_lm.logits(batch.tokens, edits)[:, :-1][kept]
            ce = float(F.cross_entropy(logits, target, reduction="sum"))
            total, zero = (total + ce, zero) if rows is x_hat else (total, zero + ce)
        n += len(target)
    assert result.downstream["ce_spliced"] == pytest.approx(total / n, rel=1e-5)
    assert result.downstream["ce_zero"] == pytest.approx(zero / n, rel=1e-5)
    assert result.downstream["ce_spliced"] != result.downstream["ce_plain"]


def test_the_whole_suite_is_measured(result):
    assert set(result.skipped) == {"recovery", "probing", "absorption", "amortisation"}
    length = result.description_length
    assert length.fvu == pytest.approx(result.reconstruction["fvu"], rel=1e-4)
    assert length.curve[-1].fvu >= length.fvu - 1e-6
    assert result.ablation.latents.n > 0
    assert result.uniformity.n_tokens > 0


def test_encoder_and_decoder_of_different_sites_are_not_compared(result):
    assert result.dictionary.encoder_mean is None


def test_contributions_are_derivatives_where_the_transcoder_writes(run, random_lm, batches):
    """y = f (W_dec . g): what the logit changes by, to first order, as a latent's value does."""
    sae, tokens = run.load_sae(), batches[0].tokens[:1]
    position = torch.tensor([3])
    x, gradient = centred_logit_gradients(random_lm, WRITES, tokens, position, READS)
    assert torch.equal(x, random_lm.capture(tokens, [READS])[READS][:, 3])
    codes = sae.encode(x)
    found = contributions(codes, sae.W_dec, gradient)[0, 0]

    def centred(value) -> torch.Tensor:
        step = value * codes.values[0, 0] * sae.W_dec[codes.indices[0, 0]]

        def edit(rows):
            rows = rows.clone()
            rows[0, 3] += step
            return rows

        logits = random_lm.logits(tokens, {WRITES: edit})[0, 3].double()
        return logits[tokens[0, 4]] - logits.mean()

    slope = (centred(0.05) - centred(-0.05)) / 0.1
    torch.testing.assert_close(float(found), float(slope), rtol=2e-2, atol=1e-4)


def test_a_transcoder_of_arrays_is_measured_on_held_back_rows(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=generator)
    y = (x @ torch.randn(8, 5, generator=generator)).relu()
    store = write_arrays(tmp_path / "store", {"in": x, "out": y})
    config = TrainConfig.model_validate(
        {
            "sae": {"variant": "topk", "d_sae": 24, "k": 4},
            "activations": store,
            "site": "in",
            "target_site": "out",
            "skip": True,
            "n_tokens": 4000,
            "batch_size": 100,
            "lr": 1e-2,
        }
    )
    run = train(config, out=tmp_path / "run")
    found = evaluate_arrays(run, EvaluateOptions(suite="full"))
    assert found.reconstruction["fvu"] < 0.5
    assert found.description_length.fvu == pytest.approx(found.reconstruction["fvu"], rel=1e-4)
    assert "uniformity" in found.skipped
