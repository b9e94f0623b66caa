"""What becomes of a training whose checkpoints were damaged, swapped, or are not its own."""

import json
import os
import shutil
import socket
from multiprocessing import Process

import pytest
import torch
from conftest import small_config
from killed import contents, differing
from safetensors.torch import save_file
from training.test_loop import advance, started

from saelab.config import UsageError
from saelab.training.adopt import adopt
from saelab.training.loop import train
from saelab.training.state import TrainingState

pytestmark = pytest.mark.unchecked

OLDER, NEWER = "step_000000010.safetensors", "step_000000020.safetensors"


def config_of(store, **changes):
    return small_config(store, **{"n_tokens": 2600, **changes}, log_every=7, checkpoint_every=10)


class StoppedError(Exception):
    pass


def stopped(config, out, *, after):
    """A run whose process died behind its checkpoint of this step."""
    save = TrainingState.save

    def save_and_die(self, directory, place):
        save(self, directory, place)
        if self.step == after:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "save", save_and_die)
        with pytest.raises(StoppedError):
            train(config, out=out, device="cpu")
    return out


@pytest.fixture(scope="module")
def half(small_store, tmp_path_factory):
    """A run with two checkpoints, and one that was never stopped."""
    root = tmp_path_factory.mktemp("damage")
    config = config_of(small_store)
    whole = contents(train(config, out=root / "whole", device="cpu").path)
    return stopped(config, root / "half", after=20), whole


@pytest.fixture
def run(half, tmp_path):
    return shutil.copytree(half[0], tmp_path / "run")


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def beheaded(path):
    path.write_bytes(path.read_bytes()[-1000:])


def emptied(path):
    os.truncate(path, 0)


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def zeroed_at_the_end(path):
    data = path.read_bytes()
    path.write_bytes(data[:-512] + bytes(512))


def lengthened(path):
    path.write_bytes(path.read_bytes() + b"\0")


def foreign(path):
    save_file({"weight": torch.zeros(3)}, path)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def directory(path):
    path.unlink()
    path.mkdir()


DAMAGES = [truncated, beheaded, emptied, zeroed, zeroed_at_the_end, lengthened, foreign, pipe]


def finish(out, store):
    return train(config_of(store), out=out, device="cpu").path


def same_but_command(out, whole):
    """The figures, weights and configuration are those of a run that was never stopped."""
    return [n for n in differing(contents(out), whole) if n != "provenance.json"] == []


def test_two_checkpoints_are_kept_and_no_more(half):
    assert sorted(p.name for p in (half[0] / "checkpoints").iterdir()) == [OLDER, NEWER]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_taken(run, half, small_store, capsys, damage):
    damage(run / "checkpoints" / NEWER)
    finish(run, small_store)
    err = capsys.readouterr().err
    assert NEWER in err
    assert "training continues from step 10" in err
    assert same_but_command(run, half[1])


@pytest.mark.parametrize("damage", [*DAMAGES, directory, os.unlink])
def test_damage_of_the_older_checkpoint_changes_nothing(run, half, small_store, capsys, damage):
    damage(run / "checkpoints" / OLDER)
    finish(run, small_store)
    assert "Note" not in capsys.readouterr().err
    got = contents(run)
    got.pop("checkpoints/" + OLDER + "/", None)  # A directory of that name is not ours.
    assert [n for n in differing(got, half[1]) if n != "provenance.json"] == []


def test_the_checkpoint_before_a_lost_one_is_taken(run, half, small_store):
    (run / "checkpoints" / NEWER).unlink()
    finish(run, small_store)
    assert same_but_command(run, half[1])


def test_swapped_checkpoints_are_what_they_say_and_not_what_they_are_called(run, half, small_store):
    first, second = (run / "checkpoints" / name for name in (OLDER, NEWER))
    first.rename(run / "aside")
    second.rename(first)
    (run / "aside").rename(second)
    finish(run, small_store)
    assert same_but_command(run, half[1])


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_none_is_whole_one_sentence_says_what_to_do(run, half, small_store, damage):
    for name in (OLDER, NEWER):
        damage(run / "checkpoints" / name)
    before = contents(run) if damage is not pipe else None
    with pytest.raises(UsageError, match=rf"{NEWER}.* no other .* remove .*checkpoints to train"):
        finish(run, small_store)
    assert before is None or contents(run) == before
    shutil.rmtree(run / "checkpoints")
    finish(run, small_store)
    assert same_but_command(run, half[1])


@pytest.mark.parametrize("place", range(12))
def test_no_changed_byte_goes_unseen(run, half, small_store, capsys, place):
    path = run / "checkpoints" / NEWER
    data = bytearray(path.read_bytes())
    data[place * (len(data) - 1) // 11] ^= 4
    path.write_bytes(data)
    finish(run, small_store)
    assert NEWER in capsys.readouterr().err
    assert same_but_command(run, half[1])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, "of another run: seed is 1 there"),
        ({"sae": {"variant": "topk", "d_sae": 48, "k": 4}}, "of another run: sae is"),
        ({"n_tokens": 9000}, ""),
    ],
)
def test_a_checkpoint_of_another_run_is_not_taken_for_its_own(
    run, half, small_store, tmp_path, capsys, changes, reason
):
    other = stopped(config_of(small_store, **changes), tmp_path / "other", after=20)
    name = "step_000000030.safetensors"
    shutil.copy(other / "checkpoints" / NEWER, run / "checkpoints" / name)
    finish(run, small_store)
    err = capsys.readouterr().err
    assert reason in err
    if reason:
        assert "training continues from step 20" in err
        assert same_but_command(run, half[1])


def test_strays_harm_nothing_and_what_dead_processes_left_goes(run, half, small_store):
    ended = Process(target=int)
    ended.start()
    ended.join()
    kept = run / "checkpoints" / "notes.txt", run / "checkpoints" / "step_old" / "x"
    kept[1].parent.mkdir()
    for path in kept:
        path.write_text("mine")
    (run / "checkpoints" / "step_000000099").write_text("a file")
    end = f"{socket.gethostname()}.{ended.pid}.0123abcd.tmp"
    (run / "checkpoints" / f".step_000000030.safetensors.{end}").write_bytes(b"half")
    (run / "checkpoints" / f".step_000000030.{end}").mkdir()
    (run / f".metrics.jsonl.{end}").write_bytes(b"half")
    finish(run, small_store)
    assert all(path.read_text() == "mine" for path in kept)
    got = contents(run)
    extra = got.keys() - half[1].keys()
    assert extra == {f"checkpoints/{n}" for n in ("notes.txt", "step_old/x", "step_000000099")}
    assert all(got[name] == half[1][name] for name in half[1] if name != "provenance.json")


@pytest.mark.parametrize("log", [b"", b"not JSON\n[]\n", None])
def test_the_log_is_that_of_the_checkpoint_whatever_became_of_it(run, half, small_store, log):
    if log is None:
        (run / "metrics.jsonl").unlink()
    else:
        (run / "metrics.jsonl").write_bytes(log)
    finish(run, small_store)
    assert same_but_command(run, half[1])


def test_a_run_that_an_older_version_began_continues(small_store, tmp_path, half):
    """It has one checkpoint, a directory without seals, and a log that goes on behind it."""
    config, out = config_of(small_store), tmp_path / "run"
    state, stream, objective = started(config)
    advance(state, stream, objective, 14)
    there = out / "checkpoints" / "step_000000014"
    there.mkdir(parents=True)
    (out / "config.json").write_text(config.to_json())
    save_file(dict(state.steps.tensors()), there / "state.safetensors")
    values = {"step": 14, "batches": stream.state_dict(), "by": "autograd"}
    (there / "state.json").write_text(json.dumps(values))
    lines = half[1]["metrics.jsonl"].splitlines(keepends=True)[:3]
    (out / "metrics.jsonl").write_bytes(b"".join(lines) + b'{"step": 28')
    finish(out, small_store)
    assert same_but_command(out, {**half[1], "config.json": (out / "config.json").read_bytes()})


@pytest.mark.parametrize("left", ["provenance.json", "config.json"])
def test_either_of_the_first_two_files_may_be_all_there_is(run, half, small_store, left):
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != left:
            path.unlink()
    finish(run, small_store)
    assert differing(contents(run), half[1]) in ([], ["provenance.json"])


def test_a_damaged_record_is_written_again_with_a_word(run, half, small_store, capsys):
    truncated(run / "provenance.json")
    finish(run, small_store)
    assert "provenance.json was damaged" in capsys.readouterr().err
    assert same_but_command(run, half[1])


def test_a_file_in_the_place_of_the_checkpoints_is_refused_before_any_step(run, small_store):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("mine")
    with pytest.raises(UsageError, match=r"checkpoints is no directory.*remove it"):
        finish(run, small_store)


@pytest.mark.parametrize("name", ["thesis.tex", "provenance.json", ".hidden"])
def test_a_directory_of_somebody_else_is_refused(small_store, tmp_path, name):
    out = tmp_path / "theirs"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(UsageError, match="not empty and holds no run; choose another --out"):
        finish(out, small_store)
    assert [path.name for path in out.iterdir()] == [name]


def test_what_a_finished_training_did_not_come_to_remove_goes(half, run, small_store, tmp_path):
    finish(run, small_store)
    shutil.copytree(half[0] / "checkpoints", run / "checkpoints", dirs_exist_ok=True)
    before = (run / "weights.safetensors").stat().st_mtime_ns
    finish(run, small_store)
    assert (run / "weights.safetensors").stat().st_mtime_ns == before
    assert same_but_command(run, half[1])


def test_an_import_is_made_once_and_another_in_its_place_is_refused(small_run, tmp_path):
    sae, out = small_run.load_sae(), tmp_path / "run"
    options = small_run.options
    given = {"activations": options["activations"], "site": options["site"], "out": out}
    run = adopt(sae, origin="here", **given)
    before = run.weights.stat().st_mtime_ns
    assert adopt(sae, origin="here", **given).weights.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="not empty; choose another --out"):
        adopt(sae, origin="there", **given)
    sae.W_dec.neg_()
    with pytest.raises(UsageError, match="not empty; choose another --out"):
        adopt(sae, origin="here", **given)
    run.weights.unlink()
    again = adopt(sae, origin="there", **given)
    assert again.provenance()["imported_from"] == "there"
    assert torch.equal(again.load_sae().W_dec, sae.W_dec)
