import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from feature_browser.data.weights import DecoderRows, read_decoder
from feature_browser.pages.compare.correspondence import ALIKE, KINDS, correspond

from saelab.config import UsageError


def decoder(rows, *, signed: bool = False) -> DecoderRows:
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1)
    return DecoderRows(rows / norms[:, None], norms, signed)


def random_decoder(n: int, seed: int, *, signed: bool = False) -> DecoderRows:
    return decoder(np.random.default_rng(seed).normal(size=(n, 6)), signed=signed)


def test_a_shuffled_copy_is_matched_whole():
    one, order = random_decoder(16, 3), np.random.default_rng(0).permutation(16)
    found = correspond(one, DecoderRows(one.rows[order], one.norms[order], signed=False))
    # Rows of few dimensions may be alike by chance; each one's own copy is nearer than that.
    assert np.array_equal(order[found.this.nearest.row], np.arange(16))
    assert found.this.counts()["unique"] == 0


def test_split_merged_matched_and_unique_are_told_apart():
    e = np.eye(6)
    this = decoder([e[0], e[1], e[1] + 0.1 * e[5], e[2], e[3]])
    other = decoder([e[0] + 0.1 * e[4], e[0] - 0.1 * e[4], e[1], e[2], e[4]])
    found = correspond(this, other)
    names = list(KINDS)
    assert [names[k] for k in found.this.kind] == ["split", "merged", "merged", "matched", "unique"]
    assert [names[k] for k in found.other.kind] == [
        "merged", "merged", "split", "matched", "unique",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_kinds_partition_the_latents_and_mean_what_they_say(seed: int):
    this, other = random_decoder(60, seed), random_decoder(45, seed + 100)
    found = correspond(this, other)
    cosines = this.rows @ other.rows.T
    assert sum(found.this.counts().values()) == 60
    assert sum(found.other.counts().values()) == 45
    unique = set(found.this.of_kind("unique").tolist())
    assert unique == set(np.flatnonzero(cosines.max(axis=1) < ALIKE).tolist())
    for latent in found.this.of_kind("matched"):
        mate = cosines[latent].argmax()
        assert cosines[:, mate].argmax() == latent
    for latent in found.this.of_kind("split"):
        near = (cosines.argmax(axis=0) == latent) & (cosines.max(axis=0) >= ALIKE)
        assert near.sum() == found.this.followers[latent] >= 2


def test_opposite_rows_match_where_codes_are_signed_only():
    rows = np.eye(4)
    for signed, kind in ((True, "matched"), (False, "unique")):
        found = correspond(decoder(rows, signed=signed), decoder(-rows, signed=signed))
        assert found.this.counts()[kind] == 4


def test_the_histogram_counts_every_latent_once():
    found = correspond(random_decoder(30, 0), random_decoder(30, 1))
    edges, counts = found.histogram()
    assert sum(counts) == 30
    assert len(edges) == len(counts) + 1


def test_the_decoder_of_a_run_is_read_as_it_was_saved(runs: Path):
    from saelab.sae.storage import load_sae

    path = runs / "plain" / "weights.safetensors"
    W_dec = load_sae(path).W_dec.detach().numpy()
    read = read_decoder(path, signed=False)
    assert read.norms == pytest.approx(np.linalg.norm(W_dec, axis=1), rel=1e-5)
    assert read.rows * read.norms[:, None] == pytest.approx(W_dec, abs=1e-6)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_weights_are_said_to_be(tmp_path: Path, content: bytes):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"weights\.safetensors"):
        read_decoder(tmp_path / "weights.safetensors", signed=False)


def test_the_decoder_is_read_without_torch(runs: Path):
    code = (
        "import sys; from pathlib import Path;"
        "from feature_browser.data.weights import read_decoder;"
        f"read_decoder(Path({str(runs / 'plain' / 'weights.safetensors')!r}), signed=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
