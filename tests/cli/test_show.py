"""`saelab show` takes a time in proportion to what a store holds."""

import json

import numpy as np
import pytest

from saelab.activations import format as store_format
from saelab.activations.arrays import write_arrays
from saelab.activations.format import Manifest, SiteSpec, manifest_bytes, read_manifest
from saelab.cli import main


@pytest.fixture(scope="module")
def store_of(tmp_path_factory):
    rng = np.random.default_rng(0)

    def make(n_sites):
        path = tmp_path_factory.mktemp("stores") / str(n_sites)
        write_arrays(path, {f"site{i}": rng.normal(size=(64, 2)) for i in range(n_sites)})
        return path

    return make


def counted(path, monkeypatch):
    """How often showing a store digests its manifest, and asks a site for its names."""
    counts = {"digest": 0, "name": 0, "slug": 0}

    def count(what, inner):
        def call(*arguments):
            counts[what] += 1
            return inner(*arguments)

        return call

    with monkeypatch.context() as patch:
        digest = count("digest", store_format.canonical_digest)
        patch.setattr(store_format, "canonical_digest", digest)
        for what in ("name", "slug"):
            getter = getattr(SiteSpec, what).fget
            patch.setattr(SiteSpec, what, property(count(what, getter)))
        assert main(["show", str(path)]) == 0
    return counts


def test_the_work_grows_with_the_sites_and_no_faster(store_of, monkeypatch, capsys):
    few, many = (counted(store_of(n), monkeypatch) for n in (5, 20))
    assert capsys.readouterr().out.count("total_variance") == 25
    # Each file of a site carries the digest of the manifest, which has all sites in it.
    assert few["digest"] == many["digest"] <= 4
    for what in ("name", "slug"):
        assert many[what] <= 4 * few[what]


def test_a_manifest_of_20000_sites_is_read(tmp_path):
    sites = tuple(SiteSpec(hook=f"h{i}", d_in=1) for i in range(20_000))
    same = {"model": None, "corpus": None, "dtype": "float32", "seed": 0}
    sizes = {"context_length": 1, "contexts_per_unit": 1, "n_contexts": 1}
    manifest = Manifest.model_validate({"sites": sites, **same, **sizes})
    (tmp_path / "manifest.json").write_bytes(manifest_bytes(manifest))
    found = read_manifest(tmp_path)
    assert found == manifest
    assert [found.site(f"h{i}").name for i in (0, 19_999)] == ["h0", "h19999"]


def test_a_copy_of_a_manifest_has_its_own_digest(store_of):
    manifest = read_manifest(store_of(2))
    before = manifest.content_digest
    other = manifest.model_copy(update={"seed": manifest.seed + 1, "sites": manifest.sites[:1]})
    assert other.content_digest != before == manifest.content_digest
    assert other == Manifest.model_validate(other.model_dump())
    with pytest.raises(KeyError):
        other.site(manifest.sites[1].name)


def test_what_is_printed_is_for_people_and_json_has_the_digits(store_of, capsys):
    path = str(store_of(2))
    assert main(["show", path]) == 0
    text = capsys.readouterr().out
    assert main(["show", path, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert "null" not in text
    assert "complete                 yes" in text
    assert "model                    none" in text
    variance = values["sites"]["site0"]["total_variance"]
    assert f"{variance:.6g}" in text
    assert repr(variance) not in text
