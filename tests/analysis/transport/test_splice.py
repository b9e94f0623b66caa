"""What the model runs on is what was said, and the controls are what they are called."""

import math

import pytest
import torch
from analysis.transport.conftest import LAYERS

from saelab.analysis.transport.measure import measure_transport
from saelab.analysis.transport.moments import PairMoments
from saelab.analysis.transport.options import TransportOptions
from saelab.analysis.transport.ranked import Spectrum
from saelab.analysis.transport.splice import Splicer, splice
from saelab.config import UsageError
from saelab.evaluation.downstream import Downstream
from saelab.host.host import Host
from saelab.host.text import corpus_of, stream


@pytest.fixture(scope="module")
def host(spoken, random_lm):
    return Host.of_run(spoken, random_lm)


@pytest.fixture(scope="module")
def corpus(spoken, random_lm):
    return corpus_of(spoken, random_lm, "held-out")


def maps_between(host, corpus, pair):
    seen = [
        host.lm.capture(batch.tokens, list(pair))
        for batch in stream(host, corpus, n_tokens=500, batch_size=8)
    ]
    rows = [torch.cat([each[site].flatten(0, 1) for each in seen]).double() for site in pair]
    return Spectrum.of(PairMoments.of(*rows)).reduced_rank(0.0)


def test_a_site_transported_to_itself_changes_nothing_and_rank_0_would_be_the_mean(host, corpus):
    pair = (LAYERS[1], LAYERS[1])
    maps = maps_between(host, corpus, pair)
    found = splice(Splicer(host, pair, maps, (1, 16), {}), corpus, n_tokens=100, batch_size=5)
    ce = {(s.name, s.rank): s.ce for s in found}
    assert ce["transported", 16] == pytest.approx(ce["plain", None], abs=1e-5)
    assert ce["identity", None] == pytest.approx(ce["plain", None], abs=1e-5)
    assert ce["sae-transported", 16] == pytest.approx(ce["sae", None], abs=1e-4)
    recovered = {(s.name, s.rank): s.recovered for s in found}
    assert recovered["plain", None] == 1
    assert recovered["mean", None] == 0
    assert ce["transported", 1] != pytest.approx(ce["plain", None], abs=1e-3)


def test_the_cross_entropies_are_those_of_evaluate(host, corpus):
    pair = (LAYERS[0], LAYERS[1])
    maps = maps_between(host, corpus, pair)
    found = splice(Splicer(host, pair, maps, (3,), {}), corpus, n_tokens=100, batch_size=5)
    wanted = {"sae": Downstream(host.lm.device), "transported": Downstream(host.lm.device)}
    for batch in stream(host, corpus, n_tokens=100, batch_size=5):
        x = host.lm.capture(batch.tokens, [pair[0]])[pair[0]][batch.mask]
        rows = {"sae": host.sae.reconstruct(batch.x), "transported": maps.transport(3)(x).float()}
        for name, count in wanted.items():
            count.update(host.lm, pair[1], batch.tokens, batch.mask, rows[name].detach())
    for one in found:
        if one.name in wanted:
            figures = wanted[one.name].results()
            assert one.ce == pytest.approx(figures["ce_spliced"], rel=1e-5)
            assert one.low is not None
            assert one.high is not None
            assert one.low <= one.recovered <= one.high
    assert found[0].ce == pytest.approx(wanted["sae"].results()["ce_plain"], rel=1e-5)


def test_rows_beyond_a_limit_pass_unchanged(host, corpus):
    pair = (LAYERS[0], LAYERS[1])
    maps = maps_between(host, corpus, pair)
    limits = {LAYERS[0]: 1e-9}
    splicer = Splicer(host, pair, maps, (1,), limits)
    with pytest.raises(UsageError, match="no two tokens in a row to splice into"):
        splice(splicer, corpus, n_tokens=100, batch_size=5)


def test_a_pair_of_a_model_is_measured_and_spliced(spoken, random_lm):
    options = TransportOptions(from_=(LAYERS[0],), rank=(2, 16), n_splice=100)
    (found,) = measure_transport(spoken, options, lm=random_lm)
    names = [(s.name, s.rank) for s in found.splices]
    assert names == [
        ("plain", None), ("mean", None), ("identity", None), ("transported", 2),
        ("transported", 16), ("sae", None), ("sae-transported", 16),
    ]  # fmt: skip
    assert found.facts["no_splice"] is None
    assert found.curves["r2"][-1] > 0.5
    assert all(math.isfinite(s.ce) for s in found.splices)
    quick = options.model_copy(update={"n_splice": 0})
    (found,) = measure_transport(spoken, quick)
    assert not found.splices
    assert found.spliced("plain") is None
    assert "not asked for" in found.facts["no_splice"]
