"""The announced needs of `features` follow from what fires, and are known before a large batch."""

import pytest
import torch
from stand_in import answer_as

from saelab.analysis.features import FeatureOptions, plan
from saelab.analysis.features.plan import FIRING_BYTES, TRIED_POSITIONS, features_plan
from saelab.host.text import corpus_of

HUGE = 10**9
"""Bytes that a firing takes, in a test, so that nothing else counts."""


class OnGpu:
    """A model that says it is on a GPU, and notes how many contexts its passes read."""

    def __init__(self, lm):
        answer_as(self, lm)
        self._lm, self.device, self.passes = lm, torch.device("cuda"), []

    def capture(self, tokens, hooks):
        self.passes.append(len(tokens))
        return self._lm.capture(tokens, hooks)


@pytest.fixture
def planned(small_run, random_lm):
    """The plan of a run, by its model or another one."""
    corpus, options = corpus_of(small_run, random_lm, "train"), FeatureOptions(n_tokens=2000)

    def make(lm=random_lm):
        return features_plan(small_run, lm, small_run.load_sae(), corpus, options)

    return make


@pytest.mark.parametrize(("free", "whole"), [(0, False), (10**15, True)])
def test_a_gpu_tries_a_whole_batch_only_where_it_fits(
    free, whole, planned, random_lm, small_run, monkeypatch
):
    monkeypatch.setattr(plan, "free_on", lambda _: free)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    lm = OnGpu(random_lm)
    found = planned(lm)
    length = small_run.context_length
    few = TRIED_POSITIONS // length
    assert all(n > few if whole else n == few for n in lm.passes)
    assert found.device.type == "cuda"
    assert found.beside > 0


def test_one_latents_firings_are_counted_whole(planned, small_run, monkeypatch):
    d_sae = small_run.config.sae.d_sae
    monkeypatch.setattr(plan, "WORKED_ON", HUGE)
    monkeypatch.setattr(plan, "FIRINGS_AT_ONCE", 1)
    found = {}
    for workers in (1, 2, d_sae):
        monkeypatch.setattr(plan, "WORKERS", workers)
        found[workers] = planned().memory / HUGE
    every = found[d_sae]
    assert every / d_sae < found[1] < found[2] <= 2 * found[1]
    assert found[2] < every


def test_evidence_takes_its_time_too(planned, monkeypatch):
    monkeypatch.setattr(plan, "WORKERS", 4)
    monkeypatch.setattr(plan, "EVIDENCE_SECONDS", float(HUGE))
    seconds, disk = planned().seconds, planned().disk
    monkeypatch.setattr(plan, "WORKERS", 1)
    assert seconds is not None
    assert planned().seconds == pytest.approx(4 * seconds)
    assert seconds * 4 / HUGE <= disk / FIRING_BYTES
