"""Planted: half of the features are carried by a known map, the other half is made anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis.transport.cases import D_IN, N_CARRIED, N_FEATURES, NOISE, N

from saelab.activations.arrays import write_arrays
from saelab.activations.order import permutation
from saelab.activations.store import ActivationStore
from saelab.analysis.transport import firing, measure
from saelab.analysis.transport.measure import measure_transport
from saelab.analysis.transport.moments import PairMoments
from saelab.analysis.transport.options import TransportOptions
from saelab.analysis.transport.ranked import Spectrum
from saelab.analysis.transport.records import VERDICTS, load_transport
from saelab.analysis.transport.rows import choose_rows
from saelab.config import UsageError

OPTIONS = TransportOptions(from_=("early",))


@pytest.fixture(scope="module")
def found(known):
    (one,) = measure_transport(known.run, OPTIONS, device="cpu")
    return one


def test_the_verdict_on_every_planted_feature_is_right(found):
    verdict = [VERDICTS[i] for i in found.verdict()]
    assert verdict == ["carried"] * N_CARRIED + ["computed"] * (N_FEATURES - N_CARRIED)
    assert (found.n_fired > 300).all()


def test_r2_is_what_the_noise_leaves(found):
    # Where feature 0 is on it is uniform on a width of 1, so of variance 1/12, and gains NOISE².
    expected = (1 / 12) / (1 / 12 + NOISE**2)
    assert found.low[0] < expected < found.high[0]
    assert found.best[1:N_CARRIED].min() > 0.999
    # A fresh feature is predicted no better than by its mean over all rows.
    assert np.abs(found.best - found.mean)[N_CARRIED:].max() < 0.1


def test_r2_is_that_of_plain_sums_over_the_rows(known, found):
    x, y = known.x.double(), known.y.double()
    options = OPTIONS.model_copy(update={"ridge": 0.0})
    rows = choose_rows(known.store, known.run, ["early", "late"], options)
    # Rows of arrays are documents of their own, dealt in this order.
    fold = torch.from_numpy(permutation(N, 0, 1) % rows.n_groups % 5)
    y_hat = torch.zeros_like(y)
    for f in range(5):
        others = PairMoments.of(x[fold != f], y[fold != f])
        maps = Spectrum.of(others).reduced_rank(found.facts["ridge"])
        y_hat[fold == f] = maps.transport()(x[fold == f])
    sae = known.run.load_sae()
    fires = sae.encode(known.y).dense() != 0
    for i in range(N_FEATURES):
        a, a_hat = (part[fires[:, i]] @ sae.W_dec[i].detach().double() for part in (y, y_hat))
        r2 = 1 - (a - a_hat).square().sum() / (a - a.mean()).square().sum()
        assert found.best[i] == pytest.approx(float(r2), abs=1e-4)
    everywhere = 1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
    assert found.curves["r2"][-1] == pytest.approx(float(everywhere), abs=1e-3)


def test_the_maps_find_the_rank_of_what_is_carried(found):
    # Of 8 directions that matter 4 are carried, one of them with noise; the others vary by 0.001.
    ranks = found.curves["r2"]
    assert ranks[N_CARRIED] == pytest.approx(ranks[-1], abs=1e-3)
    assert ranks[N_CARRIED - 1] < ranks[N_CARRIED] - 0.05
    assert N_CARRIED - 0.5 < found.size < N_CARRIED + 0.3 < found.fitted_size
    assert found.r2.shape == (len(found.ranks), N_FEATURES)
    assert list(found.ranks) == [1, 4, D_IN]
    assert np.abs(found.r2[1] - found.r2[2]).max() < 0.02


def test_the_kept_map_is_the_planted_one(known, found):
    predicted = found.operator(N_CARRIED)(known.x)
    carried = known.run.load_sae().W_dec[1:N_CARRIED].detach().double()
    wanted = known.y.double() @ carried.T
    torch.testing.assert_close(predicted @ carried.T, wanted, atol=0.05, rtol=0)
    with pytest.raises(UsageError, match="keeps maps of ranks 1 to 10; got 11"):
        found.operator(11)


def test_widths_that_differ_have_no_identity_and_equal_ones_have(known, found, tmp_path):
    assert np.isnan(found.identity).all()
    both = {"early": known.y + 1, "late": known.y}
    store = ActivationStore(write_arrays(tmp_path / "store", both))
    (same,) = measure_transport(known.run, OPTIONS, store=store, device="cpu")
    # P4.7: what is only shifted is carried whole, by the identity too.
    for column in (same.best, same.identity, same.everywhere, same.other, same.direction):
        np.testing.assert_allclose(column, 1, atol=1e-4)


def test_latents_of_the_earlier_site_are_followed_to_the_later_one(known, tmp_path):
    # At the later site the first half of the features is turned off, the rest is passed on.
    later = known.y.clone()
    atoms = known.run.load_sae().W_dec.detach()
    later -= (known.y - 1) @ atoms[:4].T @ atoms[:4]
    later += torch.randn(N, 4, generator=torch.Generator().manual_seed(0)) @ atoms[:4]
    arrays = {"late": known.y, "later": later}
    store = ActivationStore(write_arrays(tmp_path / "store", arrays))
    options = TransportOptions(from_=("late",), to=("later",))
    (found,) = measure_transport(known.run, options, store=store, device="cpu")
    assert found.facts["latents_at"] == "from"
    assert [VERDICTS[i] for i in found.verdict()] == ["computed"] * 4 + ["carried"] * 4


def test_what_is_there_is_not_measured_again_and_other_options_are(known, monkeypatch):
    calls = []
    (first,) = measure_transport(known.run, OPTIONS, device="cpu")
    monkeypatch.setattr(
        measure, "cross_validated", lambda *_: calls.append(1) or (_ for _ in ()).throw(KeyError)
    )
    (again,) = measure_transport(known.run, OPTIONS, device="cpu")
    assert not calls
    assert again.facts == first.facts
    with pytest.raises(KeyError):
        measure_transport(known.run, OPTIONS.model_copy(update={"seed": 1}), device="cpu")
    assert [one.earlier for one in load_transport(known.run.path)] == ["early", "late"]


def test_rare_latents_have_no_r2(known, monkeypatch):
    monkeypatch.setattr(firing, "LEAST_FIRINGS", N)
    options = OPTIONS.model_copy(update={"seed": 2})
    (found,) = measure_transport(known.run, options, device="cpu")
    assert found.count("rare") == N_FEATURES
    assert found.summary()["median_r2"]["latents"] is None
    assert found.record(3)["r2"] is None


def test_no_document_is_in_two_folds_and_all_are_used(spoken):
    store = ActivationStore(spoken.config.activations)
    options = TransportOptions(from_=("blocks.0.hook_resid_post",))
    rows = choose_rows(store, spoken, store.sites, options)
    document = np.concatenate([store.tokens(unit).document for unit in store.units])
    owners: dict[int, set[int]] = {int(name): set() for name in document}
    for group, name in zip(np.concatenate(rows.groups), document, strict=True):
        owners[int(name)].add(int(group))
    assert {len(groups) for groups in owners.values()} == {1}
    assert len(owners) == rows.n_apart > 40
    assert set().union(*owners.values()) == set(range(20))
    assert rows.n_groups == 20


def test_maps_do_not_learn_documents_by_heart(tmp_path, known, monkeypatch):
    # Each document has one row of x and one of y, many times, which have nothing to do with each
    # other: only maps that saw the document can predict it.
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, d, generator=draw).repeat(100, 1) for d in (40, 12))
    arrays = {"early": x, "late": y}
    store = ActivationStore(write_arrays(tmp_path / "store", arrays))
    own = ActivationStore.tokens
    apart = lambda self, unit: replace(own(self, unit), document=own(self, unit).document % 30)  # noqa: E731
    (known_by_heart,) = measure_transport(known.run, OPTIONS, store=store, device="cpu")
    monkeypatch.setattr(ActivationStore, "tokens", apart)
    options = OPTIONS.model_copy(update={"seed": 3})
    (honest,) = measure_transport(known.run, options, store=store, device="cpu")
    assert known_by_heart.curves["r2"][-1] > 0.99
    assert honest.curves["r2"][-1] < 0.05
