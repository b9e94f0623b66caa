"""The demo's claims, on a smaller amount of the same work."""

import pytest

from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.analysis.features import FeatureOptions, collect_features
from saelab.evaluation.evaluate import evaluate
from saelab.training.loop import train
from saelab.training.recipes import TINY_RESIDUAL, tiny_topk

pytestmark = [pytest.mark.slow, pytest.mark.unchecked]


@pytest.fixture(scope="module")
def store(tiny_lm, tmp_path_factory):
    corpus = load_corpus("tiny", tiny_lm)
    out = tmp_path_factory.mktemp("demo") / "store"
    return harvest(tiny_lm, [TINY_RESIDUAL], corpus, out=out, options=HarvestOptions(120_000))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    recipe = tiny_topk(store.path, TINY_RESIDUAL)
    config = recipe.model_copy(update={"n_tokens": 800_000, "dead_after": 50_000})
    return train(config, out=tmp_path_factory.mktemp("demo") / "run")


@pytest.fixture(scope="module")
def evaluation(run, tiny_lm):
    return evaluate(run, tiny_lm, n_tokens=30_000)


def test_rows_carry_the_grammars_labels(store, tiny_lm):
    columns = store.tokens(0)
    female = store.manifest.label_names.index("name_female")
    names = {tiny_lm.tokenizer.token(int(t)) for t in columns.token[columns.labels[:, female]]}
    assert "mary" in names
    assert "john" not in names


def test_a_topk_sae_is_faithful_at_l0_of_16_or_less(evaluation):
    assert evaluation.reconstruction["l0"] <= 16
    assert evaluation.reconstruction["fvu"] <= 0.05
    assert evaluation.downstream["ce_recovered"] >= 0.99


def test_every_known_feature_is_linearly_there_and_single_latents_find_fewer(evaluation):
    features = evaluation.recovery.features
    assert len(features) >= 50
    assert min(feature.probe_auroc for feature in features) >= 0.75
    found = [feature.f1 for feature in features]
    assert max(found) > 0.9
    assert sum(found) < sum(feature.probe_f1 for feature in features)


def test_a_latent_matched_with_a_token_class_shows_such_tokens(run, tiny_lm, evaluation):
    """The top examples of the latent that finds sentence ends stand on full stops."""
    features = collect_features(run, tiny_lm, FeatureOptions(n_tokens=20_000))
    by_label = {feature.label: feature for feature in evaluation.recovery.features}
    record = features[by_label["sentence_end"].latent]
    peaks = [example.tokens[example.peak].text for example in record.examples["top"]]
    assert peaks.count(".") > len(peaks) / 2
