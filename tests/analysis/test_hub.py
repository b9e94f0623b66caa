"""A run goes to a hub whole, with a card that says how to load it, or a sentence says why not."""

import shutil
import time

import huggingface_hub
import pytest
import torch
import yaml
from hub_stub import COMMIT, Hub, serving
from huggingface_hub import ModelCard, constants

from saelab.analysis.hub.card import anonymous
from saelab.cli import main
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.sae.interop.convert import load_foreign_sae
from saelab.training.run import Run

TOKEN = "hf_secret"
SITE = "blocks.0.hook_resid_post"


@pytest.fixture
def hub(monkeypatch):
    """A hub that lets TOKEN write, and a token in the environment."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(Hub({}, writers={TOKEN})) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def evaluated(small_run, tmp_path):
    """A copy of a run with figures, and a text from the hub."""
    run = Run(shutil.copytree(small_run.path, tmp_path / "topk"))
    write_sealed_json(run.path / "evaluation/reconstruction.json", FIGURES)
    write_sealed_json(run.path / "evaluation/summary.json", {"made": {"command": ["/home/me/x"]}})
    return Run(run.path)


FIGURES = {"fvu": 0.125, "l0": 4.0, "dead": 3, "n_tokens": 100, "d_sae": 32}


def push(run, *more):
    return main(["push", str(run.path), *map(str, more)])


def test_what_arrives_is_the_run_and_the_same_sae_for_sae_lens(
    hub, evaluated, tmp_path, capsys, monkeypatch
):
    assert push(evaluated, "me/topk", "--license", "mit") == 0
    told = f"a new repository, private\ncommit {COMMIT}\n{hub.endpoint}/me/topk\n"
    assert capsys.readouterr().out == told
    assert hub.created == {"me/topk": True}
    for name, data in hub.files.items():
        path = tmp_path / "hub" / name.removeprefix("me/topk/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        assert TOKEN.encode() not in data
        assert str(tmp_path).encode() not in data
        assert b"/home" not in data
    card = ModelCard((tmp_path / "hub/README.md").read_text(), ignore_metadata_errors=False)
    card.validate()
    header = card.data.to_dict()
    assert (header["license"], header["library_name"]) == ("mit", "saelens")
    assert "POST /api/validate-yaml" in hub.asked
    # The card's own code loads the SAE that was trained.
    code = card.text.split("```python\n")[1].split("```")[0]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _: str(tmp_path / "hub"))
    found = {"rows": torch.randn(5, 16)}
    exec(code, found)
    sae = evaluated.load_sae()
    assert torch.equal(found["x_hat"], sae.decode(sae.encode(found["rows"])))
    assert f'SAE.from_pretrained("me/topk", "{SITE}")' in card.text
    foreign = load_foreign_sae(tmp_path / "hub" / SITE)
    assert torch.allclose(foreign.decode(foreign.encode(found["rows"])), found["x_hat"], atol=1e-6)
    # Figures and origin are those of the run.
    assert "| FVU | 0.1250 |" in card.text
    assert evaluated.provenance()["model"]["weights_digest"] in card.text


def test_a_folder_is_written_without_token_or_hub(
    hub, evaluated, mlp_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("HF_TOKEN")
    assert push(evaluated, "me/topk", "--dry-run", "--out", tmp_path / "folder") == 0
    assert not hub.asked
    listed = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    files = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert sorted(listed[:-1]) == sorted(str(p.relative_to(tmp_path / "folder")) for p in files)
    header = yaml.safe_load((tmp_path / "folder/README.md").read_text().split("---")[1])
    assert header["license"] == "unknown"
    # The same again is no error; another run's folder is left alone.
    assert push(evaluated, "me/topk", "--dry-run", "--out", tmp_path / "folder") == 0
    assert push(mlp_run, "me/topk", "--dry-run", "--out", tmp_path / "folder") == 2
    assert "name a new directory" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "folder/saelab")]) == 0


def test_a_repository_that_holds_something_is_left_alone(hub, evaluated, capsys):
    hub.files["me/topk/config.json"] = b"other"
    assert push(evaluated, "me/topk") == 2
    assert "holds 1 files already" in capsys.readouterr().err
    assert hub.files == {"me/topk/config.json": b"other"}
    assert push(evaluated, "me/topk", "--replace", "--public") == 0
    # An old repository stays as visible as it was.
    assert hub.created == {}
    assert "me/topk/README.md" in hub.files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": ""}, "HF_TOKEN is not set"),
        ({"token": "hf_other"}, "does not let this HF_TOKEN do that with me/topk (403)"),
        ({"repo": "me/topk/x"}, "'me/topk/x' is no name of a repository; owner/name is."),
        ({"license": "my own"}, "'my own' is no name of a licence"),
        ({"endpoint": "http://127.0.0.1:9"}, "me/topk could not be written"),
        ({"offline": True}, "me/topk could not be written"),
        ({"status": 429}, "refuses more requests for 30 s"),
        ({"status": 503}, "answered 503"),
        ({"drops": {"commit"}}, "nothing was committed, and the same command tries again"),
    ],
)
def test_whatever_goes_wrong_is_one_sentence(change, words, hub, evaluated, capsys, monkeypatch):
    if "token" in change:
        monkeypatch.setenv("HF_TOKEN", change["token"])
    if "endpoint" in change:
        monkeypatch.setattr(constants, "ENDPOINT", change["endpoint"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", change.get("offline", False))
    hub.status, hub.drops = change.get("status"), change.get("drops", set())
    licence = ["--license", change["license"]] if "license" in change else ["--license", "mit"]
    assert push(evaluated, change.get("repo", "me/topk"), *licence) == 2
    err = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("Note: sending")]
    assert len(err) == 1
    assert words in err[0]
    assert TOKEN not in err[0]
    assert not hub.files


def test_names_of_a_run_are_text_in_the_card(evaluated, tmp_path):
    path = evaluated.path / "provenance.json"
    made = read_sealed_json(path)
    made["model"]["name"] = "/home/me/<script>alert(1)</script>|`x`\n# title"
    made["corpus"] = {"source": "hf:some/texts:train"}
    made |= {"licence": "qwen", "imported_from": "[x](javascript:1)"}
    write_sealed_json(path, made)
    assert push(evaluated, "me/topk", "--dry-run", "--out", tmp_path / "folder") == 0
    text = (tmp_path / "folder/README.md").read_text()
    card = ModelCard(text, ignore_metadata_errors=False)
    header = card.data.to_dict()
    told = (header["license"], header["license_name"], header["datasets"])
    assert told == ("other", "qwen", ["some/texts"])
    assert "<script" not in text
    assert "\n# title" not in text
    assert "[x](" not in text


def test_the_card_does_not_say_in_which_directory_a_run_was_made(evaluated, tmp_path):
    path = evaluated.path / "provenance.json"
    origin = {"imported_from": "SAELens 6 topk: /home/me_too/sae", "notes": ["as /home/me_too/n"]}
    write_sealed_json(path, read_sealed_json(path) | origin)
    assert push(evaluated, "me/topk", "--dry-run", "--out", tmp_path / "folder") == 0
    text = (tmp_path / "folder/README.md").read_text()
    assert "SAELens 6 topk: sae" in text
    assert "home" not in text


def test_only_directories_are_cut_from_texts():
    kept = ["hf:owner/name", "https://a.b/c/d", "/", "a/b", "~/z", "blocks.0.hook", 3, None]
    assert anonymous(kept) == kept
    cut = anonymous({"a": ["--out=/home/me/x y", "~/y/z", "C:\\Users\\me\\q", "/tmp/a/b.json"]})
    assert cut == {"a": ["--out=x y", "z", "q", "b.json"]}


def test_transcoders_that_sae_lens_lacks_go_without_it(mlp_run, tmp_path):
    assert push(mlp_run, "me/t", "--dry-run", "--out", tmp_path / "folder") == 0
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["README.md", "saelab"]
    assert "SAELens has no architecture" in (tmp_path / "folder/README.md").read_text()
