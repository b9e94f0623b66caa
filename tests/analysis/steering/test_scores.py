"""The scores of a run: complete, stored whole, and read back without a model."""

import h5py
import numpy as np
import pytest
import torch
from conftest import SENTENCE, small_config

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.analysis.records import Features
from saelab.analysis.steering.lens import lens_tokens
from saelab.analysis.steering.measures import ScoreOptions
from saelab.analysis.steering.records import load_steering_scores, steering_path
from saelab.analysis.steering.scores import score_latents, steering_scores
from saelab.config import UsageError
from saelab.training.loop import train

OPTIONS = ScoreOptions(prompt=SENTENCE, n_lens=4, min_examples=3)


@pytest.fixture(scope="module", params=["topk", "abs-topk"])
def run(request, small_store, random_lm, tmp_path_factory):
    sae = {"variant": request.param, "d_sae": 32, "k": 4}
    config = small_config(small_store, sae=sae, n_tokens=1000)
    run = train(config, out=tmp_path_factory.mktemp("steering") / request.param)
    collect_features(run, random_lm, FeatureOptions(n_tokens=300, n_examples=12, reach=3))
    return run


@pytest.fixture(scope="module")
def scores(run, random_lm):
    return steering_scores(run, random_lm, OPTIONS)


def test_every_latent_has_a_row_and_signed_ones_have_two(run, scores):
    signed = run.config.sae.variant == "abs-topk"
    rows = [(latent, sign) for sign in ((1, -1) if signed else (1,)) for latent in range(32)]
    assert list(zip(scores.latent.tolist(), scores.sign.tolist(), strict=True)) == rows
    assert [scores.row(*row) for row in rows] == list(range(len(rows)))


def test_input_scores_equal_counting_in_the_examples(run, scores):
    features = Features(run.path)
    checked = 0
    for row in range(len(scores)):
        record = features[int(scores.latent[row])]
        examples = record.examples["top" if scores.sign[row] > 0 else "negative"]
        peaks = [example.tokens[example.peak].text for example in examples]
        assert len(peaks) == scores.n_examples[row]
        if len(peaks) < 3:
            assert np.isnan(scores.input[row])
            continue
        promised = scores.words(scores.lens[row])
        assert scores.input[row] == sum(peak in promised for peak in peaks) / len(peaks)
        checked += 1
    assert checked > 5


def test_the_lens_of_a_negative_pole_is_that_of_the_opposite_direction(run, random_lm, scores):
    W_dec = run.load_sae().W_dec
    for row in (0, len(scores) - 1):
        direction = float(scores.sign[row]) * W_dec[int(scores.latent[row])]
        expected = lens_tokens(random_lm, run.config.site, direction[None], 4)[0]
        assert scores.lens[row].tolist() == expected.tolist()


def test_a_few_latents_score_as_they_do_among_all(run, random_lm, scores):
    few = score_latents(run, random_lm, [31, 4], OPTIONS)
    for row in range(len(few)):
        full = scores.row(int(few.latent[row]), int(few.sign[row]))
        assert few.output[row] == pytest.approx(scores.output[full], abs=1e-6)
        assert few.peaks[row].tolist() == scores.peaks[full].tolist()


def test_scores_come_back_as_they_were_written_with_where_they_come_from(run, random_lm, scores):
    loaded = load_steering_scores(run.path)
    for name in ("latent", "sign", "input", "output", "rank", "probability", "lens", "peaks"):
        assert np.array_equal(
            getattr(loaded, name), getattr(scores, name), equal_nan=name == "input"
        )
    assert loaded.vocabulary == scores.vocabulary
    assert loaded.vocabulary[5] == random_lm.tokenizer.token(5)
    facts = loaded.facts
    assert facts["prompt"] == SENTENCE
    assert facts["options"]["n_lens"] == 4
    assert facts["config_digest"] == run.config.digest()
    assert facts["model"]["weights_digest"] == random_lm.info.weights_digest
    assert facts["format"] == "saelab-steering/1"


def test_every_dataset_is_contiguous(run, scores):
    with h5py.File(steering_path(run.path)) as h5:
        names: list[str] = []
        h5.visit(names.append)
        datasets = [item for item in (h5[n] for n in names) if isinstance(item, h5py.Dataset)]
        assert len(datasets) == 11
        assert all(d.chunks is None and d.id.get_offset() is not None for d in datasets)


def test_what_is_missing_is_said(run, random_lm, tiny_lm, tmp_path):
    with pytest.raises(UsageError, match="run `saelab steer RUN --all` first"):
        load_steering_scores(tmp_path)
    with pytest.raises(UsageError, match="Latents go from 0 to 31"):
        score_latents(run, random_lm, [32], OPTIONS)
    with pytest.raises(UsageError, match="was trained on"):
        score_latents(run, tiny_lm, [0], OPTIONS)
    with pytest.raises(UsageError, match="does not know “In”, “my”, “experience,”"):
        score_latents(run, random_lm, [0])


def test_a_run_without_features_is_told_to_collect_them(small_store, random_lm, tmp_path):
    run = train(small_config(small_store, n_tokens=200), out=tmp_path / "bare")
    with pytest.raises(UsageError, match="run `saelab features` first"):
        steering_scores(run, random_lm, OPTIONS)


def test_features_of_other_weights_are_refused(run, random_lm, tmp_path):
    import shutil

    from saelab.sae.storage import save_sae
    from saelab.training.run import Run

    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    sae = copy.load_sae()
    with torch.no_grad():
        sae.b_dec.add_(1)
    save_sae(sae, copy.weights)
    with pytest.raises(UsageError, match="collected with other weights"):
        steering_scores(copy, random_lm, OPTIONS)
