"""What the latents of a crosscoder share: norms, latent scaling, the file, and the verb."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config

from saelab.activations.arrays import write_arrays
from saelab.analysis.features import FeatureOptions, collect_features
from saelab.analysis.sharing.measure import LatentScaling, measure_sharing
from saelab.analysis.sharing.records import FILE, Sharing, load_sharing, save_sharing
from saelab.cli import main
from saelab.config import UsageError
from saelab.figures.sharing import sharing_figure
from saelab.formats.hdf5_file import read_hdf5, write_hdf5
from saelab.host.host import Host
from saelab.sae.crosscoder import CrosscoderConfig
from saelab.training.loop import train
from saelab.training.run import Run

SITES = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
SAE = {"variant": "crosscoder", "d_sae": 32, "k": 4}


@pytest.fixture(scope="module")
def run(small_store, tmp_path_factory) -> Run:
    config = small_config(small_store, sae=SAE, site="+".join(SITES), n_tokens=2000)
    return train(config, out=tmp_path_factory.mktemp("sharing") / "layers", device="cpu")


@pytest.fixture(scope="module")
def diffing(tmp_path_factory) -> Run:
    """Two stores of arrays: the first four of eight coordinates are the same in both."""
    root = tmp_path_factory.mktemp("diffing")
    draw = np.random.default_rng(0)
    first = (draw.random((1200, 8)) < 0.2) * (0.5 + draw.random((1200, 8)))
    second = np.concatenate([first[:, :4], np.roll(first[:, 4:], 7, axis=0)], axis=1)
    paths = [
        write_arrays(root / name, {"x": rows.astype(np.float32)}, rows_per_unit=256)
        for name, rows in (("one", first), ("two", second))
    ]
    values = {
        "sae": SAE | {"d_sae": 16, "k": 2.4}, "activations": paths[0], "beside": paths[1:],
        "site": "x", "n_tokens": 60_000, "batch_size": 200, "lr": 2e-2, "log_every": 100,
    }  # fmt: skip
    from saelab.training.config import TrainConfig

    return train(TrainConfig.model_validate(values), out=root / "run", device="cpu")


@pytest.mark.unchecked
def test_two_models_share_what_is_the_same_in_both(diffing, capsys):
    found, path = measure_sharing(diffing)
    assert path == diffing.path / FILE
    rows = diffing.load_sae().W_dec.detach().split(8, dim=1)
    alive = found.n_fired > 0
    assert max(found.fvu) < 0.15
    for site in range(2):
        own = found.specific(site) & alive
        assert set(rows[site][own].abs().argmax(1).tolist()) == {4, 5, 6, 7}
        assert found.genuine[own].all()
    both = found.shared & alive
    assert set(rows[0][both].abs().argmax(1).tolist()) == {0, 1, 2, 3}
    assert (rows[0][both].argmax(1) == rows[1][both].argmax(1)).all()
    assert main(["diff", str(diffing.path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    said, wanted = values["summary"], found.summary()
    assert said["sites"][1]["site"].endswith("two")
    for site, other in zip(said.pop("sites"), wanted.pop("sites"), strict=True):
        assert site.pop("fvu") == pytest.approx(other.pop("fvu"))
        assert site == other
    assert said == wanted
    assert main(["evaluate", str(diffing.path), "--n-tokens", "300", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["reconstruction"]
    mean = (figures["fvu_site_1"] + figures["fvu_site_2"]) / 2
    assert figures["fvu"] == pytest.approx(mean, rel=0.1)


def test_latent_scaling_is_the_least_squares_of_each_latent():
    generator = torch.Generator().manual_seed(0)
    sae = CrosscoderConfig(d_sae=6, k=3, widths=(4, 4)).build(8, generator)
    x = torch.randn(50, 8, generator=generator)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(6, 8, generator=generator))
        sae.after_optimizer_step()
        sae.calibrate(x)
        codes = sae.encode(x)
        scaling = LatentScaling(sae)
        parts = zip(codes.dense().split(20), x.split(20), strict=True)
        for dense, part in parts:
            made = sae.encode(part)
            torch.testing.assert_close(made.dense(), dense)
            scaling.update(made, part, sae.decode(made))
        f, x_hat = codes.dense().double(), sae.decode(codes).double()
        W, strongest = sae.W_dec.double(), sae.site_norms().argmax(1)
        for latent in range(6):
            own = W[latent, 4 * strongest[latent] :][:4]
            column = torch.outer(f[:, latent], own).flatten()[:, None]
            for site in range(2):
                span = slice(4 * site, 4 * site + 4)
                part = torch.outer(f[:, latent], W[latent, span])
                error = (x.double() - x_hat)[:, span] + part
                for scales, y in zip(scaling.scales(), (error, x_hat[:, span]), strict=True):
                    beta = torch.linalg.lstsq(column, y.flatten()[:, None]).solution.item()
                    assert float(scales[latent, site]) == pytest.approx(beta, rel=1e-4, abs=1e-5)


def test_the_live_model_gives_the_rows_of_the_store(run, random_lm, small_store):
    host = Host.of_run(run, random_lm)
    tokens = torch.from_numpy(small_store.tokens(small_store.units[0]).contexts).long()
    joint = small_store.site("+".join(SITES))
    found = host.lm.capture(tokens, [host.reads])[host.reads]
    assert found.shape[-1] == host.lm.width(host.reads) == joint.d_in
    columns = small_store.tokens(small_store.units[0])
    context = columns.context.astype(np.int64) - int(columns.context.min())
    rows = found[context, columns.position.astype(np.int64)]
    stored = joint.rows(0, len(rows))
    torch.testing.assert_close(rows, stored, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="is 2 sites, which can be read together but not"):
        host.lm.logits(tokens, {host.reads: lambda x: x})


def test_features_and_evaluation_of_several_sites(run, random_lm, tmp_path, capsys):
    copy = Run(shutil.copytree(run.path, tmp_path / "layers"))
    features = collect_features(copy, random_lm, FeatureOptions(n_tokens=200, reach=3))
    assert len(features) == 32
    assert main(["evaluate", str(copy.path), "--n-tokens", "100", "--suite", "core"]) == 0
    shown = capsys.readouterr().out
    assert "FVU, site 2" in shown
    assert "The SAE reads 2 sites" in shown
    assert main(["diff", str(copy.path), "--device", "cpu"]) == 0
    assert SITES[1] in capsys.readouterr().out
    assert main(["verify", str(copy.path)]) == 0
    assert main(["circuit", str(copy.path), "--prompt", "the big"]) == 2
    assert "circuits take SAEs at" in capsys.readouterr().err
    assert main(["steer", str(copy.path), "--all", "--prompt", "the big"]) == 2
    assert "reads 2 sites, and steering changes the model at one" in capsys.readouterr().err


def test_what_cannot_read_several_sites_is_refused(small_store, small_run, tmp_path):
    for changes, problem in (
        ({"site": "+".join(SITES)}, "A topk SAE cannot read 2 sites"),
        ({"site": "+".join(SITES), "sae": SAE, "target_site": SITES[0]}, "--target-site is for an"),
        ({"site": SITES[0], "beside": [small_store.path], "sae": SAE, "live": True}, "--live is"),
    ):
        with pytest.raises(UsageError, match=problem):
            train(small_config(small_store, **changes), out=tmp_path / "no", device="cpu")
    with pytest.raises(UsageError, match="is a topk SAE of one site"):
        measure_sharing(small_run)


def sharing() -> Sharing:
    """Three latents of two sites: of the first alone, of both, and between."""
    norm = np.array([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3], [0.05, 0.95]], np.float32)
    scale = np.array([[1, 0.1], [1, 1], [1, 0.5], [0.4, 0.5]], np.float32)
    fired = np.array([5, 9, 2, 7])
    return Sharing(("one", "two"), (0.1, 0.2), 90, fired, norm, scale, scale.copy())


def test_kinds_follow_from_norms_and_genuine_from_the_data(tmp_path: Path):
    found = sharing()
    assert found.specific(0).tolist() == [True, False, False, False]
    assert found.specific(1).tolist() == [False, False, False, True]
    assert found.shared.tolist() == [False, True, False, False]
    np.testing.assert_allclose(found.error_ratio, [0.1, 1, 0.5, 0.8], rtol=1e-6)
    assert found.genuine.tolist() == [True, False, False, False]
    sites = found.summary()["sites"]
    assert [(site["specific"], site["genuine"]) for site in sites] == [(1, 1), (1, 0)]
    save_sharing(found, tmp_path, {})
    assert load_sharing(tmp_path).summary() == found.summary()
    assert len(sharing_figure(found).data) == 1  # pyrefly: ignore[bad-argument-type]


def test_a_damaged_file_is_named(tmp_path: Path):
    path = save_sharing(sharing(), tmp_path, {})
    whole = read_hdf5(path)
    arrays, facts = {name: whole[name].copy() for name in whole}, whole.facts
    norm = arrays["latent/norm"]
    for changed, said, problem in (
        ({"latent/norm": norm[:, :1]}, {}, "norm has the shape"),
        ({"latent/norm": -norm}, {}, "a norm is no norm"),
        ({}, {"sites": ["one"]}, "its sites have no names"),
        ({}, {"n_rows": "many"}, "its figures are no numbers"),
    ):
        write_hdf5(path, arrays | changed, facts | said)
        with pytest.raises(UsageError, match=f"not a whole file of shared latents: .*{problem}"):
            load_sharing(tmp_path)
