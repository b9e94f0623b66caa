import os
from pathlib import Path

import numpy as np
import pytest
from feature_browser.data.weights import DecoderRows, read_decoder, width
from feature_browser.pages.compare import job as compare_job
from feature_browser.pages.compare import nearest
from feature_browser.pages.compare.correspondence import Correspondence, correspond
from feature_browser.pages.compare.job import Progress, WeightsFile, matching
from safetensors.numpy import save_file

from saelab.config import UsageError


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[WeightsFile, WeightsFile]:
    """Two decoders that are too large to be matched while one waits."""
    monkeypatch.setattr(compare_job, "COSINES_AT_ONCE", 100)
    monkeypatch.setattr(compare_job, "_jobs", {})
    return weights(tmp_path / "a", 30, 0), weights(tmp_path / "b", 20, 1)


def weights(directory: Path, n: int, seed: int) -> WeightsFile:
    directory.mkdir()
    path = directory / "weights.safetensors"
    rows = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)
    save_file({"W_dec": rows}, path)
    return WeightsFile(path, path.stat().st_mtime_ns, lambda: read_decoder(path, signed=False))


def finished(this: WeightsFile, other: WeightsFile) -> Correspondence:
    matching(this, other)
    for job in compare_job._jobs.values():
        if job.thread:
            job.thread.join()
    found = matching(this, other)
    assert isinstance(found, Correspondence)
    return found


def same(one: Correspondence, other: Correspondence) -> bool:
    return all(
        np.array_equal(a.nearest.row, b.nearest.row) and np.array_equal(a.kind, b.kind)
        for a, b in ((one.this, other.this), (one.other, other.other))
    )


def test_what_runs_beside_the_app_finds_what_is_found_at_once(pair):
    this, other = pair
    assert same(finished(this, other), correspond(this.read(), other.read()))


def test_the_two_may_be_asked_for_in_either_order(pair):
    this, other = pair
    assert same(finished(other, this), correspond(other.read(), this.read()))
    assert len(compare_job._jobs) == 1


def test_until_it_is_done_it_says_how_far_it_is(pair, monkeypatch):
    this, other = pair
    monkeypatch.setattr(compare_job.threading.Thread, "start", lambda self: None)
    assert matching(this, other) == Progress(0.0)
    next(iter(compare_job._jobs.values())).progress = Progress(0.5, 3.0)
    assert matching(other, this) == Progress(0.5, 3.0)


def unreadable() -> DecoderRows:
    raise AssertionError("the decoder was read again")


def test_another_server_reads_what_was_found(pair, monkeypatch):
    this, other = pair
    found = finished(this, other)
    monkeypatch.setattr(compare_job, "_jobs", {})
    again = [WeightsFile(side.path, side.stamp, unreadable) for side in pair]
    kept = matching(*again)
    assert isinstance(kept, Correspondence)
    assert same(kept, found)


def test_what_a_page_waits_for_is_kept_where_reading_it_is_faster(pair, monkeypatch):
    monkeypatch.setattr(compare_job, "COSINES_AT_ONCE", 600)
    found = matching(*pair)
    assert isinstance(found, Correspondence)
    assert not (pair[0].path.parent / "comparisons").exists()
    monkeypatch.setattr(compare_job, "KEPT_FROM", 600)
    for sides in (pair, [WeightsFile(side.path, side.stamp, unreadable) for side in pair]):
        monkeypatch.setattr(compare_job, "_jobs", {})
        again = matching(*sides)
        assert isinstance(again, Correspondence)
        assert same(again, found)


def test_a_search_that_was_broken_off_goes_on_from_what_was_kept(pair, monkeypatch):
    this, other = pair
    monkeypatch.setattr(nearest, "STRETCH", 7)
    monkeypatch.setattr(compare_job, "SECONDS_BETWEEN_KEEPS", 0.0)
    kept: list[int] = []
    write = compare_job._write

    def broken_off(path: Path, found: nearest.Search) -> None:
        kept.append(found.done)
        write(path, found)
        if found.done == 14:
            raise UsageError("the power failed")

    monkeypatch.setattr(compare_job, "_write", broken_off)
    with pytest.raises(UsageError, match="power"):
        finished(this, other)
    monkeypatch.setattr(compare_job, "_jobs", {})
    assert same(finished(this, other), correspond(this.read(), other.read()))
    assert kept == [7, 14, 21, 28, 30]
    (job,) = compare_job._jobs.values()
    assert job.progress == Progress(1.0, 0.0)


@pytest.mark.parametrize("damage", ["cut", "nonsense", "indices"])
def test_a_damaged_file_is_found_out_and_the_work_done_again(pair, monkeypatch, damage: str):
    this, other = pair
    found = finished(this, other)
    (kept,) = (this.path.parent / "comparisons").iterdir()
    if damage == "indices":
        arrays = {
            f"{name}/{key}": np.full(n, 999) if key == "row" else np.ones(n, np.float32)
            for name, n in (("first", 30), ("second", 20))
            for key in ("row", "cosine")
        }
        compare_job.write_hdf5(kept, arrays, {"format": compare_job.FORMAT, "done": 30})
    else:
        kept.write_bytes(kept.read_bytes()[:300] if damage == "cut" else b"nonsense")
    monkeypatch.setattr(compare_job, "_jobs", {})
    assert same(finished(this, other), found)


def test_changed_weights_are_compared_anew(pair):
    this, other = pair
    finished(this, other)
    save_file({"W_dec": other.read().rows[::-1].copy()}, this.path)
    os.utime(this.path, ns=(1, 1))
    changed = WeightsFile(this.path, 1, lambda: read_decoder(this.path, signed=False))
    assert same(finished(changed, other), correspond(changed.read(), other.read()))


def test_a_directory_that_cannot_be_written_costs_the_keeping_only(pair, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(compare_job, "write_hdf5", refuse)
    finished(*pair)
    assert not (pair[0].path.parent / "comparisons").exists()


def test_weights_that_cannot_be_read_are_said_to_be(pair):
    this, other = pair
    compare_job._jobs.clear()

    def damaged() -> DecoderRows:
        raise UsageError("The decoder is damaged.")

    broken = WeightsFile(this.path, this.stamp, damaged)
    with pytest.raises(UsageError, match="damaged"):
        finished(broken, other)


def test_the_width_is_read_without_the_decoder(pair):
    assert width(pair[0].path) == (30, 6)
