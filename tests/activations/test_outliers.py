"""Massive rows are found by the stated rule, exactly, and nothing else is taken for them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from activations.store_cases import make_manifest, overwrite

from saelab.activations import outliers
from saelab.activations.arrays import write_arrays
from saelab.activations.columns import NO_TOKEN, Columns
from saelab.activations.format import WITHOUT_NORMS, DamagedStoreError, SiteSpec, hook_path
from saelab.activations.norms import NormRecord, bin_edges, median_norm, merged_counts
from saelab.activations.prepare import RowPreparer
from saelab.activations.store import ActivationStore
from saelab.activations.summing import column_sums
from saelab.activations.verify import verify
from saelab.activations.writer import StoreWriter

D = 8


def normal(n, seed=0, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def planted(n=3000, massive=20, factor=80.0, seed=0):
    """Rows of which the first few are massive: one channel, far larger than all others."""
    x = normal(n, seed) + 0.5
    x[:massive, 3] += factor * torch.linspace(1, 2, massive)
    return x


def store_of(tmp_path, x, **options):
    return ActivationStore(write_arrays(tmp_path / "store", {"x": x}, **options))


def spread(x):
    return (x.double() - x.double().mean(0)).pow(2).sum(1)


def check(store, massive):
    """The massive rows of a store are those with a norm of at least `massive`, by brute force."""
    found, rows = store.outliers("x"), store.site("x").rows(0, store.n_rows)
    far = rows.double().norm(dim=1) >= massive
    assert found.rows.tolist() == far.nonzero()[:, 0].tolist()
    assert (found.n_rows, found.max_norm is not None) == (len(rows), True)
    assert found.share == pytest.approx(float(spread(rows)[far].sum() / spread(rows).sum()))
    expected = column_sums(rows[~far])
    assert found.kept.n == expected.n
    np.testing.assert_allclose(found.kept.sum, expected.sum, rtol=1e-9, atol=1e-9)
    assert found.kept.total_variance == pytest.approx(expected.total_variance, rel=1e-9)


@pytest.mark.parametrize("rows_per_unit", [None, 512, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planted_rows_are_found_and_taken_from_the_sums(tmp_path, rows_per_unit, dtype):
    check(store_of(tmp_path, planted(), rows_per_unit=rows_per_unit, dtype=dtype), 60)


def test_a_unit_with_more_massive_rows_than_it_lists_is_read(tmp_path):
    """All 90 are in the first unit of 256 rows, which lists 8."""
    store = store_of(tmp_path, planted(massive=90), rows_per_unit=256)
    check(store, 60)
    assert set(store.outliers("x").rows // 256) == {0}


def test_rows_so_large_that_a_difference_would_be_noise_are_read_past(tmp_path):
    check(store_of(tmp_path, planted(factor=1e9)), 1e8)


def test_of_very_many_massive_rows_some_stand_for_all(tmp_path, monkeypatch):
    x = planted(n=20_000, massive=1500)
    exact = column_sums(x[1500:])
    monkeypatch.setattr(outliers, "MAX_SUMMED", 500)
    found = store_of(tmp_path, x).outliers("x")
    assert (len(found.rows), found.kept.n) == (1500, exact.n)
    assert found.kept.total_variance == pytest.approx(exact.total_variance, rel=0.1)


def test_the_limit_is_six_times_the_median_whatever_the_scale(tmp_path):
    for i, scale in enumerate((1e-6, 1.0, 1e6)):
        store = ActivationStore(write_arrays(tmp_path / str(i), {"x": planted() * scale}))
        found, norms = store.outliers("x"), (planted() * scale).norm(dim=1)
        assert found.median_norm == pytest.approx(float(norms.median()), rel=0.03)
        assert found.max_norm == pytest.approx(6 * float(norms.median()), rel=0.06)


def heavy(kind, n=20_000):
    """Rows whose norms have a heavy tail, or none at all, and no second population."""
    rng = np.random.default_rng(0)
    unit = torch.nn.functional.normalize(normal(n), dim=1)
    factors = {
        "normal": np.abs(rng.normal(size=n)),
        "lognormal": rng.lognormal(0, 0.8, n),
        "wide lognormal": rng.lognormal(0, 1.3, n),
        "student": np.abs(rng.standard_t(3, n)),
        "pareto": 1 + rng.pareto(2.5, n),
        "equal": np.ones(n),
        "mostly zero": rng.lognormal(0, 0.5, n) * (rng.random(n) < 0.3),
        "two scales": np.where(rng.random(n) < 0.3, 100.0, 1.0) * rng.uniform(0.8, 1.2, n),
    }
    return unit * torch.from_numpy(factors[kind]).float()[:, None]


KINDS = ("normal", "lognormal", "wide lognormal", "student", "pareto", "equal", "mostly zero")


@pytest.mark.parametrize("kind", [*KINDS, "two scales"])
def test_a_heavy_tail_is_no_population_of_massive_rows(tmp_path, kind):
    store = store_of(tmp_path, heavy(kind))
    found = store.outliers("x")
    assert (found.max_norm, len(found.rows), found.share) == (None, 0, 0.0)
    assert found.kept is store.site("x").sums


def test_rows_that_hold_little_of_the_variance_stay(tmp_path):
    """One row of 20,000 at 8 times the median: far away, and of no weight."""
    x = normal(20_000)
    x[7] *= 8 * 2.8 / x[7].norm()
    assert store_of(tmp_path, x).outliers("x").max_norm is None


@pytest.mark.parametrize("site", ["blocks.1.hook_resid_post", "blocks.1.attn.hook_z"])
def test_a_random_and_the_shipped_model_have_none(small_store, tiny_lm, tmp_path, site):
    from saelab.activations.corpus import GrammarCorpus
    from saelab.activations.harvest import HarvestOptions, harvest

    for name in small_store.sites:
        assert len(small_store.outliers(name).rows) == 0
    corpus = GrammarCorpus("train", 0, 64)
    store = harvest(tiny_lm, [site], corpus, out=tmp_path / "s", options=HarvestOptions(4000))
    assert len(store.outliers(site).rows) == 0


@pytest.mark.parametrize("n", [1, 2, 31, 33, 1000])
def test_the_record_of_norms_is_that_of_all_rows(n):
    norms = np.abs(np.random.default_rng(n).standard_t(2, n)).astype(np.float32)
    norms[: n // 5] = 1.5  # ties
    record = NormRecord.of(norms)
    order = np.argsort(-norms, kind="stable")[: -(-n // 32)]
    assert record.tail_row.tolist() == order.tolist()
    assert record.tail_norm.tolist() == norms[order].tolist()
    assert record.norm_counts.tolist() == np.histogram(norms, bin_edges())[0].tolist()
    assert record.problem(n) is None
    assert not record.differs(norms * (1 + 1e-7), 1e-5)
    assert record.differs(norms * 1.01, 1e-5)


def test_the_median_of_a_store_is_right_to_two_per_cent():
    units = [np.random.default_rng(i).lognormal(i, 1, 500).astype(np.float32) for i in range(4)]
    counts = merged_counts([NormRecord.of(norms) for norms in units])
    assert median_norm(counts) == pytest.approx(float(np.median(np.concatenate(units))), rel=0.03)


def older(path, x, rows_per_unit=500, n_units=None):
    """A store of format 1, whose hook files record no norms, or its first few units."""
    manifest = make_manifest(
        model=None,
        format=WITHOUT_NORMS,
        sites=(SiteSpec(hook="x", d_in=D),),
        context_length=1,
        rows_policy={},
        label_names=(),
        corpus=None,
        contexts_per_unit=rows_per_unit,
        n_contexts=len(x),
        seed=0,
    )
    with StoreWriter.create(path, manifest) as writer:
        for unit in writer.missing_units()[:n_units]:
            rows = manifest.unit_contexts(unit)
            index = np.arange(rows.start, rows.stop)
            nothing = np.full(len(index), NO_TOKEN)
            place = np.zeros_like(index)
            columns = Columns(nothing, place, index, index, nothing[:, None], None)
            writer.write_unit(unit, {"x": x[rows.start : rows.stop]}, columns)
    return manifest


def test_an_older_store_is_read_once_and_gives_the_same(tmp_path):
    x = planted()
    older(tmp_path / "old", x)
    write_arrays(tmp_path / "new", {"x": x}, rows_per_unit=500)
    old, new = ActivationStore(tmp_path / "old"), ActivationStore(tmp_path / "new")
    assert not old.manifest.records_norms
    assert not old.one_site("x").norms_known
    assert new.one_site("x").norms_known
    assert old.outliers("x").rows.tolist() == new.outliers("x").rows.tolist()
    assert old.outliers("x").max_norm == new.outliers("x").max_norm
    assert old.one_site("x").norms_known
    assert verify(tmp_path / "old") == []


@pytest.mark.parametrize("harm", ["none", "cut", "other store", "wrong rows"])
def test_what_an_older_store_keeps_is_used_only_if_it_fits(tmp_path, monkeypatch, harm):
    older(tmp_path / "old", planted(massive=10))
    expected = ActivationStore(tmp_path / "old").outliers("x").rows.tolist()
    kept = tmp_path / "old" / "stats" / "x.safetensors"
    if harm == "cut":
        kept.write_bytes(kept.read_bytes()[:-100])
    elif harm == "other store":
        older(tmp_path / "other", planted(seed=1))
        ActivationStore(tmp_path / "other").outliers("x")
        kept.write_bytes((tmp_path / "other" / "stats" / "x.safetensors").read_bytes())
    elif harm == "wrong rows":
        data = bytearray(kept.read_bytes())
        data[-4:] = np.float32(np.nan).tobytes()
        kept.write_bytes(data)
    store = ActivationStore(tmp_path / "old")
    scanned = []
    read = store.one_site("x").unit_norms
    monkeypatch.setattr(store.one_site("x"), "unit_norms", lambda u: scanned.append(u) or read(u))
    assert store.outliers("x").rows.tolist() == expected
    assert len(scanned) == (0 if harm == "none" else len(store.units))


def test_an_older_store_is_continued_in_its_own_format(tmp_path):
    manifest = older(tmp_path / "old", planted(), n_units=2)
    asked = manifest.model_copy(update={"format": "saelab-activations/1.1"})
    with StoreWriter.create(tmp_path / "old", asked) as writer:
        assert writer.manifest == manifest
    older(tmp_path / "old", planted())
    assert verify(tmp_path / "old") == []


def test_norms_of_other_rows_are_found_under_valid_seals(tmp_path):
    from saelab.activations.hook_file import hook_file
    from saelab.activations.tokens_file import tokens_file

    x = planted(n=200, massive=5)
    store = store_of(tmp_path, x)
    manifest, site = store.manifest, store.manifest.sites[0]
    rows = store.site("x").rows(0, 200)
    prepared = RowPreparer("float32").prepare(rows, np.arange(200))
    wrong = replace(prepared, norms=prepared.norms[::-1].copy())
    parts, seal = hook_file(manifest, site, 0, wrong)
    overwrite(hook_path(store.path, site, 0), b"".join(parts))
    tokens = tokens_file(manifest, 0, store.tokens(0), [seal])
    overwrite(store.path / "tokens" / "000000.h5", b"".join(tokens))
    (damage,) = verify(store.path)
    assert "statistics" in damage.problem
    with pytest.raises(DamagedStoreError, match="other norms than its files record"):
        ActivationStore(store.path).outliers("x")
