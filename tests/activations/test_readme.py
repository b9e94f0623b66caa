import re
from pathlib import Path

import pytest
from activations.store_cases import make_manifest

from saelab.activations import format as store_format
from saelab.activations.arrays import write_arrays
from saelab.activations.format import Manifest, SiteSpec
from saelab.activations.hook_file import hook_datasets, hook_identity
from saelab.activations.sealed import SEAL_BYTES, TRAILER, TRAILER_BYTES
from saelab.activations.tokens_file import tokens_datasets, tokens_identity

README = (Path(__file__).parents[2] / "activations_cache" / "README.md").read_text()


def table(heading):
    """The names in the first column of the table whose first heading is given."""
    rows = README.split(f"| {heading} |")[1].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", rows, flags=re.MULTILINE)


MANIFEST = make_manifest()
SITE = MANIFEST.sites[0]
TABLES = {
    "field": Manifest.model_fields,
    "site field": SiteSpec.model_fields,
    "hook dataset": hook_datasets(MANIFEST, SITE, 1),
    "hook attribute": [*hook_identity(MANIFEST, SITE, 0, 1), "max_abs"],
    "tokens dataset": tokens_datasets(MANIFEST, 0, 1),
    "tokens attribute": [*tokens_identity(MANIFEST, 0, 1), "excluded"],
}


@pytest.mark.parametrize("heading", TABLES)
def test_the_tables_of_the_specification_are_those_of_the_code(heading):
    assert table(heading) == list(TABLES[heading])


def test_the_trailer_is_as_large_as_specified():
    sizes = re.findall(r"^\| `\w+` \| (\d+) \|", README.split("## Trailer")[1], re.MULTILINE)
    assert sum(map(int, sizes)) == TRAILER_BYTES == TRAILER.size + SEAL_BYTES


def test_the_limits_are_as_specified():
    assert f"format `{store_format.FORMAT}`" in README
    assert f"Blocks are {store_format.BLOCK_ROWS} consecutive rows" in README
    assert (store_format.MAX_ROWS_PER_UNIT, store_format.MAX_UNITS) == (2**24, 10**6)


def test_the_reading_example_runs(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    write_arrays("activations_cache/mine", {"layer_6": torch.ones(5, 2)})
    names = {}
    exec(README.split("```python\n")[1].split("```")[0], names)
    assert names["x"].tolist() == [[1.0, 1.0]] * 5
    assert names["token"].tolist() == [-1] * 5
