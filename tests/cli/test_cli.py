"""The command line as a new user meets it."""

import json
import socket
import subprocess
import sys

import pytest

from saelab.cli import VERBS, main
from saelab.console import duration


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_harvest_says_first_what_it_will_take_and_for_what_is_missing_alone(
    checkpoint, text_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("saelab.activations.forward.seconds_per_token", lambda *_: 1.0)
    harvest = ["harvest", "--model", checkpoint, "--sites", "hook_embed", "--text", text_file]
    harvest += ["--n-tokens", 100, "--context-length", 16, "--out", tmp_path / "s"]
    assert run(*harvest, "--device", "cpu") == 0
    plan = capsys.readouterr().err.splitlines()[:4]
    assert [line.split()[0] for line in plan[1:]] == ["disk", "memory", "time"]
    assert plan[3].startswith(f"time    {duration(100)} of forward passes")
    assert run(*harvest, "--device", "cpu") == 0
    assert "time    0 s of forward passes" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_teaches_without_importing_torch(verb):
    code = (
        "import sys, saelab.cli as c\n"
        f"try: c.main(['{verb}', '--help'])\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    out = python(code)
    assert f"saelab {verb}" in out
    assert out.strip().endswith("0 False")


def test_importing_saelab_and_training_never_bring_transformer_lens():
    code = (
        "import sys, saelab\n"
        "saelab.train, saelab.Features\n"
        "print('transformer_lens' in sys.modules)"
    )
    assert python(code).strip() == "False"


def test_an_unknown_verb_is_answered_with_the_nearest(capsys):
    assert run("trian") == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_harvest_train_evaluate_features_show_verify_in_a_row(
    checkpoint, text_file, tmp_path, capsys
):
    store, directory = tmp_path / "store", tmp_path / "run"
    site = "blocks.1.attn.hook_z"
    harvest = ["harvest", "--model", checkpoint, "--sites", site, "--text", text_file]
    harvest += ["--n-tokens", 500, "--context-length", 16, "--out", store, "--device", "cpu"]
    assert run(*harvest) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(store)
    train = ["train", "topk", "--activations", store, "--site", site, "--d-sae", 24, "--k", 3]
    train += ["--n-tokens", 2000, "--batch-size", 100, "--out", directory, "--device", "cpu"]
    assert run(*train) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(directory)
    assert run("evaluate", directory, "--device", "cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reconstruction"]["l0"] <= 3
    assert run("features", directory, "--n-tokens", 200, "--device", "cpu") == 0
    assert run("verify", store) == 0
    capsys.readouterr()
    assert run("show", directory, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["finished"]
    assert shown["features"]
    assert run("show", store, "--json") == 0
    assert json.loads(capsys.readouterr().out)["complete"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "no/such.txt", "--sites", "hook_embed"], "neither a file"),
        (["--text", "{text}", "--sites", "blocks.0.hook_rseid_post"], "blocks.0.hook_resid_post"),
        (["--text", "", "--sites", "hook_embed"], "--text is empty; give text"),
        (["--text", "tiny", "--sites", "hook_embed"], "tiny model's own tokens"),
        (["--text", "{text}", "--sites", "hook_embed", "--n-tokens", "999999"], "lower --n-tokens"),
    ],
)
def test_a_bad_harvest_is_one_sentence_exit_2_and_nothing_written(
    checkpoint, text_file, tmp_path, capsys, arguments, message
):
    out = tmp_path / "out"
    filled = [a.format(text=text_file) for a in arguments]
    base = ["--model", str(checkpoint), "--device", "cpu", "--n-tokens", "100", "--out", str(out)]
    assert main(["harvest", *base, *filled]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_k_above_the_width_is_one_sentence_and_nothing_written(small_store, tmp_path, capsys):
    arguments = ["train", "topk", "--activations", small_store.path, "--n-tokens", 10]
    arguments += ["--site", "blocks.1.attn.hook_z", "--d-sae", 4, "--k", 5, "--out", tmp_path / "r"]
    assert run(*arguments, "--device", "cpu") == 2
    assert "k=5 exceeds d_sae=4" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_full_disk_is_one_sentence(small_store, tmp_path, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    arguments = ["train", "topk", "--activations", small_store.path, "--n-tokens", 10]
    arguments += ["--site", "blocks.1.attn.hook_z", "--d-sae", 4, "--k", 2, "--out", tmp_path / "r"]
    assert run(*arguments, "--device", "cpu") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_port_in_use_is_one_sentence(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run("browse", tmp_path, "--port", port) == 2
    assert f"Port {port} is in use; choose another with --port." in capsys.readouterr().err


def test_damage_exits_with_1_and_names_the_file(checkpoint, text_file, tmp_path, capsys):
    store = tmp_path / "store"
    harvest = ["harvest", "--model", checkpoint, "--sites", "hook_embed", "--text", text_file]
    assert run(*harvest, "--n-tokens", 100, "--out", store, "--device", "cpu") == 0
    (victim,) = (store / "hooks").rglob("*.h5")
    victim.chmod(0o644)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    capsys.readouterr()
    assert run("verify", store) == 1
    assert "hooks/hook_embed/000000.h5" in capsys.readouterr().out
