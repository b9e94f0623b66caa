import json

import pytest
from activations.store_cases import make_manifest
from pydantic import ValidationError

from saelab.activations.format import (
    DamagedStoreError,
    SiteSpec,
    differences,
    read_manifest,
    write_manifest,
)
from saelab.config import UsageError


def test_a_manifest_reads_back_equal(tmp_path):
    write_manifest(tmp_path, make_manifest())
    assert read_manifest(tmp_path) == make_manifest()


def test_provenance_does_not_change_the_content_digest():
    manifest = make_manifest(provenance={"device": "cuda", "created": "today"})
    assert manifest.content_digest == make_manifest().content_digest


CHANGES = {
    "model.weights_digest": {"model": {"name": "m", "weights_digest": "other"}},
    "dtype": {"dtype": "float16"},
    "context_length": {"context_length": 7},
    "rows_policy.excluded_token_ids": {"rows_policy": {"excluded_token_ids": []}},
    "label_names": {"label_names": ("other",)},
    "corpus.split": {"corpus": {"source": "numbers", "split": "test"}},
    "contexts_per_unit": {"contexts_per_unit": 5},
    "n_contexts": {"n_contexts": 11},
    "seed": {"seed": 8},
    "sites": {"sites": (SiteSpec(hook="other", d_in=3),)},
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_content_field_changes_the_digest_and_is_named(field):
    changed = make_manifest(**CHANGES[field])
    assert changed.content_digest != make_manifest().content_digest
    (sentence,) = differences(make_manifest(), changed)
    named = "only the store has the sites " if field == "sites" else f"{field} is "
    assert sentence.startswith(named)


def test_a_token_id_of_zero_differs_from_no_token():
    zero = make_manifest(model={"bos_token_id": 0})
    assert differences(zero, make_manifest(model={"bos_token_id": None}))


@pytest.mark.parametrize("hook", ["..", ".", ".hidden", "../../escape", "", "x" * 200])
def test_hooks_that_make_no_safe_directory_are_refused(hook):
    with pytest.raises(ValidationError):
        make_manifest(sites=(SiteSpec(hook=hook, d_in=1),))


def test_hooks_that_share_a_directory_are_refused():
    with pytest.raises(ValidationError, match="used twice"):
        make_manifest(sites=(SiteSpec(hook="a/b", d_in=1), SiteSpec(hook="a:b", d_in=1)))


def test_units_of_unbounded_size_are_refused():
    with pytest.raises(ValidationError, match="rows"):
        make_manifest(contexts_per_unit=2**30, n_contexts=2**30)


def test_a_directory_without_manifest_is_no_store(tmp_path):
    with pytest.raises(UsageError, match="no activation store"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "alter",
    [
        lambda text: text.replace('"seed": 7', '"seed": 8'),
        lambda text: text.replace("\n", " \n", 1),
        lambda text: text[:-40],
        lambda text: json.dumps([1, 2]),
        lambda text: text.replace('"dtype": "float32"', '"dtype": "float33"'),
        lambda text: text.replace("{", '{"extra": 1,', 1),
        lambda text: "[" * 100_000,
    ],
)
def test_an_altered_manifest_is_refused(tmp_path, alter):
    write_manifest(tmp_path, make_manifest())
    path = tmp_path / "manifest.json"
    path.write_text(alter(path.read_text()))
    with pytest.raises(DamagedStoreError, match=r"manifest\.json"):
        read_manifest(tmp_path)
