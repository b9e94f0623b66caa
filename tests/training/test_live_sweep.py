"""A whole model's SAEs from one pass of it: each is the SAE that trains alone."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from activations.forked import all_end_well
from conftest import TEXT
from safetensors.torch import load_file
from training.test_together import Launch, wait_for_checkpoint

from saelab import resources
from saelab.activations.store import ActivationStore
from saelab.cli import main
from saelab.config import MAX_D_SAE, UsageError
from saelab.lm.hf import HuggingFaceModel
from saelab.ranks import Ranks
from saelab.training import feeds, loop
from saelab.training.feeds import held_together, open_live, share_out
from saelab.training.loop import train, train_many
from saelab.training.run import Run
from saelab.training.state import TrainingState
from saelab.training.sweep import read_sweep
from saelab.training.together import together

RUNS = {
    "mlp": {"site": "blocks.*.ln2.hook_out", "target_site": "blocks.*.hook_mlp_out"},
    "attn": {"site": "blocks.*.attn.hook_z", "sae.d_sae": 24},
    "masked": {"site": "blocks.0.hook_resid_post", "objective": "masked"},
}
NAMES = ["mlp-0", "mlp-1", "attn-0", "attn-1", "masked"]
BASE = {
    "n_tokens": 3000,
    "batch_size": 100,
    "buffer_rows": 256,
    "lr": 1e-2,
    "log_every": 10,
    "checkpoint_every": 4,
    "sae": {"variant": "topk", "d_sae": 32, "k": 4},
}


def command(file, out):
    return ["train", "sweep", str(file), "--live", "--device", "cpu", "--out", str(out)]


@pytest.fixture(scope="module")
def sweep(checkpoint, tmp_path_factory):
    """A sweep of every layer, and its runs by one process."""
    path = tmp_path_factory.mktemp("live")
    (path / "text.txt").write_text(TEXT)
    harvest = {"model": str(checkpoint), "text": str(path / "text.txt"), "n_tokens": 400}
    harvest |= {"context_length": 8, "dtype": "f32"}
    file = path / "sweep.json"
    file.write_text(json.dumps({"harvest": harvest, "base": BASE, "runs": RUNS}))
    assert main(command(file, path / "runs")) == 0
    return file


def configs(sweep, out=Path("runs")):
    own = out / "activations"
    store = own if own.exists() else sweep.parent / "runs" / "activations"
    found = read_sweep(sweep, live=True, activations=str(store))
    return {out / name: config for name, config in found.items()}


def weights(path):
    return (path / "weights.safetensors").read_bytes()


def test_one_pass_feeds_all_and_each_comes_out_as_if_alone(sweep, tmp_path, monkeypatch):
    passes, captured = [], HuggingFaceModel.capture

    def capture(self, tokens, hooks):
        if tokens.numel() > 8:  # Smaller ones ask for a width.
            passes.append(len(hooks))
        return captured(self, tokens, hooks)

    monkeypatch.setattr(HuggingFaceModel, "capture", capture)
    runs = train_many(configs(sweep, tmp_path), device="cpu")
    assert [run.name for run in runs] == NAMES
    together, passes[:] = passes[:], []
    assert set(together) == {7}
    config = configs(sweep)[Path("runs/mlp-1")]
    alone = train(config, out=tmp_path / "alone", device="cpu")
    assert len(passes) == len(together)
    assert weights(alone.path) == weights(tmp_path / "mlp-1")
    for name in NAMES:
        assert weights(tmp_path / name) == weights(sweep.parent / "runs" / name)


def test_provenance_says_how_well_rows_are_mixed(sweep):
    """Of a whole buffer a context has all its rows; of a batch, its share."""
    said = Run(sweep.parent / "runs" / "attn-1").provenance()["live"]
    assert said["contexts"] == 32
    rows = 7  # of a context, without BOS
    effects = said["design_effect"]
    assert effects["batch"] == pytest.approx(0.9 + 0.1 * (1 + 99 * (rows - 1) / 223), abs=0.05)
    assert effects["16_batches"] > effects["batch"]


class KilledError(Exception):
    """A kill at a given moment."""


def test_two_processes_go_on_after_a_kill_between_two_checkpoints_of_one_step(
    sweep, tmp_path, monkeypatch
):
    real, saves = TrainingState.save, []

    def save(self, directory, place):
        saves.append(self.step)
        if len(saves) == 8:
            raise KilledError
        real(self, directory, place)

    shutil.copytree(sweep.parent / "runs" / "activations", tmp_path / "activations")
    monkeypatch.setattr(TrainingState, "save", save)
    with pytest.raises(KilledError):
        train_many(configs(sweep, tmp_path), device="cpu")
    assert saves == [4] * 5 + [8] * 3
    codes, said = Launch(command(sweep, tmp_path), 2).end()
    assert codes == [0, 0], said
    check_all_done(sweep, tmp_path)


def check_all_done(sweep, out):
    for name in NAMES:
        assert weights(out / name) == weights(sweep.parent / "runs" / name)
        assert Run(out / name).metrics()[-1]["step"] == 30


@pytest.mark.exhaustive
def test_a_dead_process_ends_the_others_and_one_can_go_on(sweep, tmp_path):
    launch = Launch(command(sweep, tmp_path), 2)
    wait_for_checkpoint(tmp_path / "mlp-0")
    launch.commands[1].kill()
    codes, said = launch.end()
    assert codes == [1, -signal.SIGKILL]
    assert said.count("has ended") == 1
    assert "Traceback" not in said
    assert main(command(sweep, tmp_path)) == 0
    check_all_done(sweep, tmp_path)
    assert Run(tmp_path / "attn-0").provenance()["world_size"] == 2


def test_whole_saes_are_shared_out_evenly(sweep):
    group = configs(sweep)
    parts = share_out(group, ActivationStore(sweep.parent / "runs" / "activations"), Ranks(0, 2))
    assert sorted(out.name for part in parts for out in part) == sorted(NAMES)
    widths = [sum(config.sae.d_sae for config in part.values()) for part in parts]
    assert max(widths) - min(widths) <= 32


def hold_one_together(rank, port, file, out):
    """One of two processes of the sweep, for which its first SAE is too wide for one."""
    found = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= found | {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    # pyrefly: ignore[bad-assignment]
    loop.held_together = lambda group, *_: [str(next(iter(group)))]
    with together(Ranks(rank, 2), torch.device("cpu")) as both:
        train_many(configs(file, out), device="cpu", together=both)


def test_an_sae_too_wide_for_one_process_is_held_by_all(sweep, tmp_path, monkeypatch):
    shutil.copytree(sweep.parent / "runs" / "activations", tmp_path / "activations")
    all_end_well(2, hold_one_together, sweep, tmp_path)
    expected = load_file(sweep.parent / "runs" / "mlp-0" / "weights.safetensors")
    for name, value in load_file(tmp_path / "mlp-0" / "weights.safetensors").items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=1e-3)
    for name in NAMES[1:]:
        assert weights(tmp_path / name) == weights(sweep.parent / "runs" / name)
    monkeypatch.setattr(feeds, "free_on", lambda _: 24)
    monkeypatch.setattr(feeds, "alone_bytes", lambda config, *_: config.sae.d_sae)
    group, cpu = configs(sweep), torch.device("cpu")
    wide = held_together(group, cpu, Ranks(0, 2))
    assert wide == [str(out) for out, config in group.items() if config.sae.d_sae > 24]
    assert len(wide) == 3
    assert held_together(group, cpu, Ranks()) == [str(out) for out in group]


def test_what_does_not_fit_into_memory_is_one_sentence(sweep, random_lm, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda: 10**6)
    with pytest.raises(UsageError, match=r"live train of 5 SAEs takes about .* --buffer-rows"):
        open_live(configs(sweep), torch.device("cpu"), random_lm, Ranks())


def test_an_sae_wider_than_memory_is_refused_before_its_step_is_timed(sweep, random_lm):
    wide = BASE | {"sae": {"variant": "topk", "d_sae": MAX_D_SAE, "k": 4}}
    stored = {key: value for key, value in wide.items() if key != "buffer_rows"}
    own, file = str(sweep.parent / "runs" / "activations"), sweep.with_name("wide.json")
    for live, base in ((True, wide), (False, stored)):
        file.write_text(json.dumps(json.loads(sweep.read_text()) | {"base": base}))
        found = read_sweep(file, live=live, activations=own)
        with pytest.raises(UsageError, match=r"^(live )?train .*takes about .*; lower --b"):
            train_many({file.with_name(f"wide-{n}"): c for n, c in found.items()}, lm=random_lm)
    file.write_text(file.read_text().replace(str(MAX_D_SAE), str(MAX_D_SAE + 1)))
    with pytest.raises(UsageError, match="d_sae: Input should be less than or equal"):
        read_sweep(file, activations=own)


def test_one_sae_of_all_layers_is_refused_before_the_store_is_made(sweep, tmp_path, capsys):
    found = json.loads(sweep.read_text()) | {"recipe": "clt", "runs": {}}
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(found))
    assert main(command(file, tmp_path / "runs")) == 2
    assert "run mlp reads the sites of all layers, and --live" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_the_pass_cannot_feed_is_refused_by_the_runs_name(sweep, tmp_path, capsys):
    found = json.loads(sweep.read_text())
    found["runs"]["attn"]["objective"] = "e2e"
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(found))
    assert main(command(file, tmp_path / "runs")) == 2
    assert "Run attn: --live trains with --objective local" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
