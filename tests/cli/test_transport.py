"""`saelab transport` prints, keeps and refuses what it says."""

import json
import shutil

import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.analysis.transport.measure import measure_transport
from saelab.analysis.transport.options import TransportOptions
from saelab.analysis.transport.records import load_transport, transport_files
from saelab.analysis.verify_run import verify_run
from saelab.cli import main
from saelab.config import UsageError
from saelab.drawing import figure
from saelab.formats.hdf5_file import read_hdf5, write_hdf5
from saelab.sae.topk import TopKConfig
from saelab.training.adopt import adopt
from saelab.training.run import Run

N, D, D_SAE = 600, 8, 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=draw)
    y = torch.cat([x[:, :4], torch.randn(N, 4, generator=draw)], dim=1)
    wide = torch.randn(N, 2 * D, generator=draw)
    arrays = {"early": x, "late": y, "later": y + 1, "wide": wide}
    return write_arrays(tmp_path_factory.mktemp("store") / "arrays", arrays)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    sae = TopKConfig(d_sae=D_SAE, k=4).build(D, torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("runs") / "topk"
    return adopt(sae, activations=store, site="late", out=path, origin="random")


@pytest.fixture
def copied(run, tmp_path):
    return Run(shutil.copytree(run.path, tmp_path / "run"))


def transport(*words: object) -> int:
    return main(["transport", *map(str, words)])


def test_several_sites_are_measured_in_one_call_and_kept(copied, capsys):
    words = ["--run", copied.path, "--from", "early", "wide", "--to", "late", "later"]
    assert transport(*words, "--rank", 2, 8, "--device", "cpu") == 0
    out, err = capsys.readouterr()
    assert "Of 12:" in out
    assert "linear transport subspace" in out
    assert "Products: 600 rows" in err
    found = {(one.earlier, one.later): one for one in load_transport(copied.path)}
    assert list(found) == [
        ("early", "late"), ("early", "later"), ("wide", "late"), ("wide", "later"),
    ]  # fmt: skip
    assert [len(one) for one in found.values()] == [D_SAE, 0, D_SAE, 0]
    assert found["early", "late"].curves["r2"][-1] > 0.4 > found["wide", "late"].curves["r2"][-1]
    check = verify_run(copied.path)
    assert not check.damages
    assert transport(*words, "--rank", 2, 8, "--device", "cpu") == 0
    assert "Products" not in capsys.readouterr().err


def test_json_has_every_latent(copied, capsys):
    assert transport("--run", copied.path, "--from", "early", "--json", "--device", "cpu") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [row["latent"] for row in found["latents"]] == list(range(D_SAE))
    counts = [found["summary"][name] for name in ("carried", "computed", "undecided", "rare")]
    assert sum(counts) == D_SAE
    assert found["summary"]["splices"] == []


BAD = [
    (["--from", "earyl"], "has no site 'earyl'; it has early"),
    (["--from", "late"], "--from and --to are both late; name two sites"),
    (["--from", "early", "--to", "later"], "are of late, not of early or later; name late as --to"),
    (["--from", "late", "--to", "wide"], "no --to is as wide as that"),
    (["--from", "early", "--rank", "9"], "--rank 9 is more than the 8 that a map from early to"),
    (["--from", "early", "--rank", "0"], "--rank"),
    (["--from", "early", "--folds", "21"], "--folds"),
    (["--from", "early", "--ridge", "nan"], "--ridge"),
    (["--from", "early", "--n-tokens", "0"], "--n-tokens"),
    (["--from", "early", "--device", "nowhere"], "The device 'nowhere' is not available"),
    ([], "--from"),
]


@pytest.mark.parametrize(
    ("words", "said"), BAD, ids=[" ".join(words) or "none" for words, _ in BAD]
)
def test_bad_input_is_one_sentence_before_anything_is_written(run, words, said, capsys):
    assert transport("--run", run.path, *words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert said in err
    assert transport_files(run.path) == []


def test_stores_that_do_not_fit_are_refused(run, tmp_path, small_store, capsys):
    rows = torch.randn(30, D, generator=torch.Generator().manual_seed(2))
    other = {"late": torch.randn(30, 5), "early": rows}
    narrow = write_arrays(tmp_path / "narrow", other)
    few = write_arrays(tmp_path / "few", {"late": rows[:4], "early": rows[:4]})
    short = write_arrays(tmp_path / "short", {"late": rows[:9], "early": rows[:9]})
    for store, said in (
        (narrow, f"late has 5 numbers in {narrow}, and the SAE of {run.path} takes 8"),
        (few, f"The rows of {few} are of 4 documents, and 5 folds keep documents whole"),
        (short, f"7 rows of {short} are left to fit a map of 8 numbers"),
        (small_store.path, "was trained on arrays; give a store of the run's model"),
        (tmp_path / "none", "is no activation store"),
    ):
        assert transport("--run", run.path, "--activations", store, "--from", "early") == 2
        assert said in (err := capsys.readouterr().err), err
        assert len([line for line in err.splitlines() if line.startswith("saelab ")]) == 1


def test_sites_in_the_wrong_order_and_single_documents_are_refused(small_run, capsys):
    heads, stream = "blocks.1.attn.hook_z", "blocks.0.hook_resid_post"
    assert transport("--run", small_run.path, "--from", heads, "--device", "cpu") == 2
    assert f"--from {heads} is computed after --to {stream}; swap" in capsys.readouterr().err
    words = ["--run", small_run.path, "--from", stream, "--to", heads, "--device", "cpu"]
    assert transport(*words) == 2
    assert "are of 1 document, and 5 folds" in (err := capsys.readouterr().err)
    assert "or take --apart contexts" in err


DAMAGES = {
    "ranks": ("map/rank", lambda a: a[::-1].copy(), "ranks do not rise"),
    "too large": ("map/rank", lambda a: a * 100, "larger than its map's"),
    "kind": ("latent/low", lambda a: a.astype("int64"), "another kind of numbers"),
    "axis": ("latent/high", lambda a: a[1:], "unlike the others"),
    "curve": ("canonical/rho", lambda a: a[1:], "unlike the others"),
    "count": ("latent/n_fired", lambda a: a - 10**6, "fewer than no tokens"),
}


@pytest.fixture(scope="module")
def measured(run, store, tmp_path_factory):
    path = shutil.copytree(run.path, tmp_path_factory.mktemp("measured") / "run")
    measure_transport(Run(path), TransportOptions(from_=("early",), rank=(2, 4)), device="cpu")
    return path


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_told_by_the_reader_and_by_verify(measured, name, tmp_path):
    copy = shutil.copytree(measured, tmp_path / "run")
    (path,) = transport_files(copy)
    stored = read_hdf5(path)
    arrays = {key: stored[key] for key in stored}
    where, change, said = DAMAGES[name]
    arrays[where] = change(arrays[where])
    write_hdf5(path, arrays, stored.facts, facts_in="dataset")
    with pytest.raises(UsageError, match=said):
        load_transport(copy)
    assert [damage.file for damage in verify_run(copy).damages] == [f"transport/{path.name}"]


def test_facts_are_untrusted_and_other_weights_are_named(measured, tmp_path):
    copy = shutil.copytree(measured, tmp_path / "run")
    (path,) = transport_files(copy)
    stored = read_hdf5(path)
    arrays = {key: stored[key] for key in stored}
    for change, said in (
        ({"splice": [{"name": "x"}]}, "splice.0.name"),
        ({"splice": 3}, "splice"),
        ({"from": "other"}, "give it back its name"),
        ({"from": None}, "does not say 'from'"),
        ({"format": "saelab-transport/9"}, "this saelab reads 'saelab-transport/1'"),
    ):
        write_hdf5(path, arrays, {**stored.facts, **change}, facts_in="dataset")
        with pytest.raises(UsageError, match=said):
            load_transport(copy)
    write_hdf5(path, arrays, {**stored.facts, "sae_sha256": "0"}, facts_in="dataset")
    assert "other weights" in verify_run(copy).damages[0].problem


def test_the_figure_draws_one_pair_and_several(measured):
    found = load_transport(measured)
    alone, several = (
        figure(given).to_plotly_json()["data"] for given in (found[0], [found[0], found[0]])
    )
    assert sum(len(trace["x"]) for trace in alone[:3]) <= D_SAE
    assert {trace["type"] for trace in several} == {"violin", "scatter"}
    assert len([trace for trace in several if trace["type"] == "violin"]) == 2
    with pytest.raises(UsageError, match="run `saelab transport` first"):
        load_transport(measured / "circuits")
