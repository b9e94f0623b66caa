"""Dashboards have the keys and types that Neuronpedia's converter reads, and the run's evidence."""

import shutil
from typing import Annotated

import pytest
from annotated_types import Len
from pydantic import BaseModel, ConfigDict

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.analysis.records import Features
from saelab.cli import main
from saelab.training.run import Run

Empty = Annotated[list[float], Len(0, 0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NeuronpediaActivation(Strict):
    bin_min: float
    bin_max: float
    bin_contains: float
    qualifying_token_index: int
    tokens: list[str]
    values: list[float]


class NeuronpediaFeature(Strict):
    feature_index: int
    neuron_alignment_indices: Empty
    neuron_alignment_values: Empty
    neuron_alignment_l1: Empty
    correlated_neurons_indices: Empty
    correlated_neurons_l1: Empty
    correlated_neurons_pearson: Empty
    correlated_features_indices: Empty
    correlated_features_l1: Empty
    correlated_features_pearson: Empty
    neg_str: list[str]
    neg_values: list[float]
    pos_str: list[str]
    pos_values: list[float]
    frac_nonzero: float
    freq_hist_data_bar_values: list[float]
    freq_hist_data_bar_heights: list[int]
    logits_hist_data_bar_heights: Empty
    logits_hist_data_bar_values: Empty
    n_prompts_total: int
    n_tokens_in_prompt: int
    dataset: str
    decoder_weights_dist: list[float]
    activations: list[NeuronpediaActivation]


class NeuronpediaBatch(Strict):
    model_id: str
    layer: int
    sae_set: str
    features: list[NeuronpediaFeature]


@pytest.fixture(scope="module")
def run(small_run, random_lm, tmp_path_factory):
    found = Run(shutil.copytree(small_run.path, tmp_path_factory.mktemp("np") / "topk"))
    collect_features(found, random_lm, FeatureOptions(n_tokens=200, n_examples=4, reach=3))
    return found


def test_every_latents_evidence_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.analysis.neuronpedia.PER_FILE", 20)
    assert main(["export", str(run.path), "--to", "neuronpedia", "--out", str(tmp_path / "n")]) == 0
    paths = sorted((tmp_path / "n").iterdir())
    assert [path.name for path in paths] == ["batch-0.json", "batch-1.json"]
    batches = [NeuronpediaBatch.model_validate_json(path.read_bytes()) for path in paths]
    found = [feature for batch in batches for feature in batch.features]
    features = Features(run.path)
    assert [each.feature_index for each in found] == list(range(32))
    assert batches[0].layer == 0
    for each, record in zip(found, features, strict=True):
        assert each.frac_nonzero == record.density
        assert sum(each.freq_hist_data_bar_heights) == record.n_fired
        assert len(each.freq_hist_data_bar_values) == len(each.freq_hist_data_bar_heights)
        assert each.pos_str == [token for token, _ in record.raised]
        tops = [a for a in each.activations if a.bin_min == -1]
        assert len(tops) == len(record.examples["top"])
        assert all(a.bin_max == record.max for a in tops)
        for a in each.activations:
            assert len(a.tokens) == len(a.values)
        for a, example in zip(tops, record.examples["top"], strict=True):
            assert a.values[a.qualifying_token_index] == pytest.approx(example.value, rel=1e-3)
        # The strata's bins hold all firings.
        bins = {(a.bin_min, a.bin_max): a.bin_contains for a in each.activations if a.bin_min != -1}
        assert not bins or sum(bins.values()) <= 1 + 1e-9


def test_chosen_latents_alone_are_written(run, tmp_path, capsys):
    export = ["export", str(run.path), "--to", "neuronpedia", "--out", str(tmp_path / "n")]
    assert main([*export, "--latents", "7", "3"]) == 0
    batch = NeuronpediaBatch.model_validate_json((tmp_path / "n/batch-0.json").read_bytes())
    assert [each.feature_index for each in batch.features] == [3, 7]
    capsys.readouterr()
    (tmp_path / "n/mine.txt").write_text("x")
    for more, words in ((["--latents", "32"], "no latent 32"), ([], "n holds mine.txt")):
        assert main([*export, *more]) == 2
        assert words in capsys.readouterr().err
    assert main(["export", str(run.path), "--latents", "1", "--out", str(tmp_path / "m")]) == 2
    assert "--latents are for --to neuronpedia" in capsys.readouterr().err
