"""Difference-in-means and latents, tried on the shipped model with an SAE that is known."""

import numpy as np
import pytest
import torch

from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.analysis.features import FeatureOptions, collect_features
from saelab.analysis.steering.concept_steering import (
    ConceptOptions,
    ConceptSteering,
    _Evidence,
    _read,
    concept_steering,
)
from saelab.analysis.steering.concepts import CONCEPTS
from saelab.analysis.steering.edits import with_maxima
from saelab.analysis.steering.records import HIGH_OUTPUT
from saelab.analysis.steering.scores import steering_scores
from saelab.evaluation.detectors import sort_events
from saelab.host.host import Host
from saelab.host.text import corpus_of, stream
from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.types import SparseCodes

# Training an SAE of the shipped model takes a few seconds.
pytestmark = pytest.mark.slow

SITE = "blocks.2.hook_resid_post"
OPTIONS = ConceptOptions(n_prompts=4, n_tokens=4000, n_pool=2, n_random=2)
SOME = tuple(concept for concept in CONCEPTS if concept.name in ("female", "spanish"))


@pytest.fixture(scope="module")
def run(tiny_lm, tmp_path_factory):
    """A small SAE of the shipped model, trained for a few seconds."""
    directory = tmp_path_factory.mktemp("concepts")
    options = HarvestOptions(n_tokens=4000, dtype="float32")
    store = harvest(
        tiny_lm, [SITE], load_corpus("tiny", tiny_lm), out=directory / "store", options=options
    )
    config = TrainConfig(
        sae=TopKConfig(d_sae=64, k=8),
        activations=store.path,
        site=SITE,
        n_tokens=20_000,
        batch_size=500,
        lr=3e-3,
    )
    run = train(config, out=directory / "run")
    collect_features(run, tiny_lm, FeatureOptions(n_tokens=2000, n_examples=12, reach=2))
    return run


@pytest.fixture(scope="module")
def scores(run, tiny_lm):
    return steering_scores(run, tiny_lm)


@pytest.fixture(scope="module")
def result(run, tiny_lm, scores) -> ConceptSteering:
    return concept_steering(run, tiny_lm, scores, OPTIONS, concepts=SOME)


def test_every_concept_has_every_method_at_the_budget_and_below_the_ideal(result, scores):
    methods = set(result.mean_gain())
    assert len(methods) == 8
    for concept in SOME:
        rows = {row.method: row for row in result.rows if row.concept == concept.name}
        assert methods - set(rows) <= {"latent: best F1 with high output score"}
        for row in rows.values():
            assert row.steered.gain <= result.ideal[concept.name] + 0.02
            if row.method != "random latents":
                assert row.steered.kl <= OPTIONS.budget * 1.011


def test_each_method_takes_the_candidate_it_says(result, scores):
    for concept in SOME:
        rows = {row.method: row for row in result.rows if row.concept == concept.name}
        pool = [one for one in result.candidates if one.concept == concept.name]
        assert len(pool) == OPTIONS.n_pool
        assert [one.f1 for one in pool] == sorted((one.f1 for one in pool), reverse=True)
        assert rows["latent: best F1"].latent == pool[0].latent
        best = max(pool, key=lambda one: one.output)
        assert rows["latent: best output score"].latent == best.latent
        filtered = rows.get("latent: best F1 with high output score")
        high = [one.latent for one in pool if one.output >= HIGH_OUTPUT]
        assert ([filtered.latent] if filtered else []) == high[:1]


def test_difference_in_means_is_the_difference_of_the_means(run, tiny_lm):
    evidence = _read(run, tiny_lm, with_maxima(Host.of_run(run, tiny_lm)), OPTIONS)
    found = {c.name: evidence.difference_in_means(c).numpy() for c in CONCEPTS}
    x, labels = [], []
    corpus = corpus_of(run, tiny_lm, "train")
    for batch in stream(
        Host.of_run(run, tiny_lm), corpus, n_tokens=OPTIONS.n_tokens, batch_size=32
    ):
        x.append(batch.x.double())
        labels.append(batch.labels())
    rows, table = torch.cat(x).numpy(), np.concatenate(labels)
    where = {name: table[:, i] for i, name in enumerate(corpus.label_names)}

    def mean(rows_where: np.ndarray) -> np.ndarray:
        return rows[rows_where].mean(axis=0)

    gender = mean(where["referent_female"]) - mean(where["referent_male"])
    spanish = mean(where["spanish_turn"]) - mean(~where["spanish_turn"])
    others = [where[f"innermost_{shape}"] for shape in ("square", "curly", "angle")]
    bracket = mean(where["innermost_round"]) - mean(np.any(others, axis=0))
    expected = {"female": gender, "male": -gender, "spanish": spanish, "round bracket": bracket}
    for name, difference in expected.items():
        assert np.allclose(found[name], difference, atol=1e-4), name
    rms = np.sqrt((rows**2).sum(axis=1).mean())
    assert evidence.rms_norm == pytest.approx(rms, rel=1e-5)


def test_difference_in_means_recovers_the_axis_of_two_gaussians():
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    holds = np.arange(20_000) % 2 == 0
    noise = torch.randn(20_000, 16, generator=generator)
    x = noise + torch.where(torch.from_numpy(holds)[:, None], axis, -axis)
    (concept,) = (c for c in CONCEPTS if c.name == "female")
    codes = SparseCodes(torch.zeros(20_000, 1), torch.zeros(20_000, 1, dtype=torch.long), 1)
    labels = {"referent_female": holds, "referent_male": ~holds}
    found = _Evidence(x, sort_events(codes), labels).difference_in_means(concept)
    assert float(torch.cosine_similarity(found, axis, dim=0)) > 0.999


def test_difference_in_means_steers_and_random_latents_do_not(result):
    gains = {method: gain for method, (gain, _) in result.mean_gain().items()}
    assert gains["difference in means"] > 0.15
    assert gains["random latents"] < 0.1
    assert all(plain < 0.1 for plain in result.plain.values())
