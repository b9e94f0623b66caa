"""Massive activations are in no batch, no statistic, no calibration and no evaluation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT, WORDS, small_config
from training.test_loop import advance, started

from saelab.activations.arrays import write_arrays
from saelab.activations.batches import BatchSites, ShuffledBatches
from saelab.activations.contexts import TokenBatch
from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.activations.store import ActivationStore
from saelab.cli import main
from saelab.config import UsageError
from saelab.evaluation.arrays import evaluate_arrays
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.options import EvaluateOptions
from saelab.host.host import Host
from saelab.host.text import corpus_of, read_text, stream
from saelab.lm.edits import replace_rows
from saelab.ranks import Ranks
from saelab.training.domain import Domain, read_domain
from saelab.training.feeds import open_live
from saelab.training.loop import train
from saelab.training.run import Run
from saelab.training.source import Source
from saelab.types import ActivationBatch

CPU = torch.device("cpu")
SITE = "blocks.0.hook_resid_post"
MASSIVE = 24
SINK = "red"
"""The word whose embedding is made massive; one in seventeen."""


def planted(n=4000, seed=0, at=slice(MASSIVE), factor=90.0):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)) + 0.3
    x[at, 3] += factor
    return x


def array_config(path, **changes):
    values = {"activations": path, "site": "x", "sae": {"variant": "topk", "d_sae": 16, "k": 2}}
    return small_config(ActivationStore(path), **values | changes)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    out = tmp_path_factory.mktemp("arrays") / "store"
    return write_arrays(out, {"x": planted(), "y": planted(seed=1, at=slice(20, 40))})


@pytest.fixture(scope="module")
def sink_lm(checkpoint, tmp_path_factory):
    """The random checkpoint with one word whose activations are massive in one channel."""
    from transformers import GPT2LMHeadModel

    from saelab.lm.load import load_language_model

    out = shutil.copytree(checkpoint, tmp_path_factory.mktemp("sinks") / "model")
    model = GPT2LMHeadModel.from_pretrained(out)
    with torch.no_grad():
        model.transformer.wte.weight[WORDS.index(SINK), 5] += 500.0
    model.save_pretrained(out)
    return load_language_model(str(out), device="cpu")


@pytest.fixture(scope="module")
def sink_store(sink_lm, tmp_path_factory):
    out = tmp_path_factory.mktemp("sinks")
    (out / "text.txt").write_text(TEXT)
    corpus = load_corpus(str(out / "text.txt"), sink_lm, context_length=8)
    options = HarvestOptions(n_tokens=400, dtype="float32", batch_size=5)
    hooks = [SITE, "blocks.0.hook_mlp_out"]
    return harvest(sink_lm, hooks, corpus, out=out / "store", options=options)


@pytest.fixture(scope="module")
def sink_run(sink_store, tmp_path_factory):
    return train(small_config(sink_store), out=tmp_path_factory.mktemp("sink_runs") / "run")


def sink_rows(store):
    tokens = np.concatenate([store.tokens(unit).token for unit in store.units])
    return np.flatnonzero(tokens == WORDS.index(SINK))


def rows_of(stream) -> ActivationBatch:
    batch = next(stream)
    assert isinstance(batch, ActivationBatch)
    return batch


def ordered(rows):
    return sorted(map(tuple, rows.tolist()))


def test_an_epoch_serves_every_row_but_those_left_out_once(arrays):
    store = ActivationStore(arrays)
    out = np.array([0, 5, 1023, 1024, 3999])
    kept = np.setdiff1d(np.arange(4000), out)
    for held_back in ((), (2,)):
        sites = BatchSites("x", target="y", held_back=held_back, left_out=out)
        expected = kept[~np.isin(kept // 1024, held_back)]
        batches = ShuffledBatches(store, sites, len(expected), pool_rows=1500)
        pairs = torch.cat([store.site(name).take(expected) for name in ("x", "y")], dim=1)
        for _ in range(2):
            batch = next(batches)
            assert batch.target is not None
            assert ordered(torch.cat([batch.x, batch.target], dim=1)) == ordered(pairs)


def test_leaving_nothing_out_is_the_order_of_before(arrays):
    store = ActivationStore(arrays)
    plain, empty = (ShuffledBatches(store, sites, 999, seed=3) for sites in ("x", BatchSites("x")))
    assert torch.equal(next(plain).x, next(empty).x)
    assert plain.state_dict() == empty.state_dict()
    assert "left_out" not in plain.state_dict()


def test_a_stream_goes_on_exactly_and_not_with_other_rows_left_out(arrays):
    store, sites = ActivationStore(arrays), BatchSites("x", left_out=np.array([3, 2000]))
    whole = ShuffledBatches(store, sites, 700, pool_rows=1500)
    for _ in range(7):
        next(whole)
    resumed = ShuffledBatches(store, sites, 700, pool_rows=1500)
    resumed.load_state_dict(whole.state_dict())
    assert all(torch.equal(next(resumed).x, next(whole).x) for _ in range(7))
    with pytest.raises(UsageError, match="left_out"):
        ShuffledBatches(store, BatchSites("x", left_out=np.array([3])), 700).load_state_dict(
            whole.state_dict() | {"pool_rows": 2**16}
        )


def test_what_is_trained_does_not_depend_on_what_is_left_out(tmp_path):
    """Massive rows of other sizes: the same SAE comes out, its bias and thresholds included."""
    found = []
    for i, factor in enumerate((90.0, 4000.0)):
        store = write_arrays(tmp_path / f"store{i}", {"x": planted(factor=factor)})
        sae = {"variant": "batch-topk", "d_sae": 16, "k": 2}
        found.append(train(array_config(store, sae=sae), out=tmp_path / f"run{i}"))
    one, other = (run.load_sae().state_dict() for run in found)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)
    fvu = [run.metrics()[-1]["fvu"] for run in found]
    assert fvu[0] == pytest.approx(fvu[1], rel=1e-3)


def test_statistics_are_those_of_what_is_trained_on(arrays):
    source = Source([array_config(arrays)], CPU)
    rows = source.site.rows(0, 4000).double()
    kept = rows[rows.norm(dim=1) < 80]
    assert len(kept) == 4000 - MASSIVE
    variance = float((kept - kept.mean(0)).pow(2).sum(1).mean())
    assert source.selection.read.total_variance == pytest.approx(variance)
    np.testing.assert_allclose(source.selection.read.mean, kept.mean(0).numpy(), atol=1e-9)
    for found in (source.start_rows(), source.calibration_rows(), rows_of(source.stream()).x):
        assert float(found.norm(dim=1).max()) < 80


def test_provenance_says_what_was_left_out_and_keep_leaves_nothing_out(arrays, tmp_path, capsys):
    run = train(array_config(arrays), out=tmp_path / "run", device="cpu")
    assert f"{MASSIVE} of 4000 rows of x are left out" in capsys.readouterr().err
    record, outliers = run.provenance(), ActivationStore(arrays).outliers("x")
    assert record["outliers"]["rows_left_out"] == MASSIVE
    assert record["outliers"]["sites"]["x"]["share_of_variance"] == outliers.share > 0.8
    assert record["total_variance"] == outliers.kept.total_variance
    assert run.domain == Domain((), outliers.max_norm)
    keep = train(array_config(arrays, outliers="keep"), out=tmp_path / "keep", device="cpu")
    assert "left out" not in capsys.readouterr().err
    assert keep.domain == Domain()
    assert keep.provenance()["total_variance"] == ActivationStore(arrays).site("x").total_variance


def test_show_tells_of_a_store_and_a_run(arrays, sink_store, sink_run, capsys):
    assert main(["show", str(sink_store.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sites"][SITE]["outliers"]
    rows = sink_rows(sink_store)
    assert found["rows"] == len(rows) == sum(found["positions"].values())
    assert main(["show", str(sink_run.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["domain"] == sink_run.domain.facts()
    assert shown["outliers"]["rows_left_out"] == len(rows)


def test_a_transcoder_leaves_out_what_is_massive_at_either_site(arrays, tmp_path):
    config = array_config(arrays, target_site="y")
    source = Source([config], CPU)
    assert len(source.selection.left_out) == 40
    rows = [source.site.rows(0, 4000), source.target.rows(0, 4000)]
    kept = (rows[0].norm(dim=1) < 80) & (rows[1].norm(dim=1) < 80)
    for x, sums in zip(rows, (source.selection.read, source.selection.written), strict=True):
        wide = x[kept].double()
        variance = float((wide - wide.mean(0)).pow(2).sum(1).mean())
        assert sums.total_variance == pytest.approx(variance)
    batch = rows_of(source.stream())
    assert max(float(part.norm(dim=1).max()) for part in (batch.x, batch.target)) < 80
    run = train(config, out=tmp_path / "run", device="cpu")
    x, y = torch.ones(1, 8), torch.full((1, 8), 1e3)
    assert run.domain.within(x, x).all()
    assert not run.domain.within(x, y).any()
    assert not run.domain.within(y).any()


def test_arrays_are_evaluated_where_the_sae_applies(arrays, tmp_path):
    run = train(array_config(arrays), out=tmp_path / "run", device="cpu")
    figures = evaluate_arrays(run).reconstruction
    rows = Source([run.config.with_every_row()], CPU).calibration_rows()
    covered = run.domain.within(rows)
    assert (figures["n_tokens"], figures["left_out"]) == (covered.sum(), (~covered).sum())
    x, sae = rows[covered], run.load_sae()
    error = (x - sae.decode(sae.encode(x), x)).double().pow(2).sum(1)
    spread = (x.double() - x.double().mean(0)).pow(2).sum(1)
    assert figures["fvu"] == pytest.approx(float(error.sum() / spread.sum()))


@pytest.mark.parametrize("harm", ["provenance", "both"])
def test_a_run_from_before_goes_on_and_applies_everywhere(arrays, tmp_path, harm):
    run = train(array_config(arrays, outliers="keep"), out=tmp_path / "run", device="cpu")
    record, options = run.provenance(), dict(run.options)
    del record["domain"], record["outliers"]
    (run.path / "provenance.json").write_text(json.dumps(record))
    if harm == "both":
        del options["outliers"], options["first_position"]
        (run.path / "config.json").write_text(json.dumps(options))
    old = Run(run.path)
    assert old.domain == Domain()
    assert old.config.outliers == "keep"
    if harm == "both":
        assert train(array_config(arrays), out=run.path, device="cpu").finished
    with pytest.raises(UsageError, match="other options"):
        train(array_config(arrays, seed=5), out=run.path, device="cpu")


@pytest.mark.parametrize(
    "facts",
    [
        {"max_norm": float("nan")},
        {"max_norm": -1},
        {"max_norm": "large"},
        {"first_position": -1},
        {"special_token_ids": ["a"]},
        {"more": 1},
    ],
)
def test_a_domain_that_is_none_is_one_sentence(facts):
    with pytest.raises(UsageError, match="no valid domain"):
        read_domain({"model": None, "domain": facts})


def test_evaluation_counts_and_edits_only_what_the_run_covers(sink_run, sink_lm):
    corpus = corpus_of(sink_run, sink_lm, "held-out")
    limit = sink_run.domain.max_norm
    assert limit is not None
    texts = read_text(Host.of_run(sink_run, sink_lm), corpus, n_tokens=60, batch_size=3)
    batches = stream(Host.of_run(sink_run, sink_lm), corpus, n_tokens=60, batch_size=3)
    left_out = 0
    for batch, text in zip(batches, texts, strict=True):
        x = sink_lm.capture(batch.tokens, [SITE])[SITE]
        real = (batch.tokens != 0) & (batch.tokens != 1)
        expected = real & (batch.tokens != WORDS.index(SINK))
        assert torch.equal(batch.mask, expected)
        assert torch.equal(batch.mask, text.mask)
        assert torch.equal(batch.x, x[expected])
        assert torch.equal(expected, sink_run.domain.covers(batch.tokens, x))
        assert batch.left_out == int((real & ~expected).sum())
        left_out += batch.left_out
        edit = {SITE: replace_rows(batch.mask, torch.zeros_like(batch.x))}
        seen = sink_lm.run(batch.tokens, edits=edit, hooks=["blocks.1.hook_resid_pre"])
        after = seen.activations["blocks.1.hook_resid_pre"]
        assert torch.equal(after[~batch.mask], x[~batch.mask])
        assert not after[batch.mask].any()
    assert left_out > 0


def test_training_and_evaluation_say_the_same_of_the_same_text(sink_run, sink_lm, sink_store):
    """The training text is one sentence over and over, and so is the text that was held out."""
    figures = evaluate(sink_run, sink_lm, EvaluateOptions(n_tokens=60, batch_size=3))
    fvu = sink_run.metrics()[-1]["fvu"]
    assert figures.reconstruction["fvu"] == pytest.approx(fvu, rel=0.3, abs=0.01)
    assert figures.reconstruction["left_out"] > 0
    whole = train(small_config(sink_store, outliers="keep"), out=sink_run.path.parent / "keep")
    rows = evaluate(whole, sink_lm, EvaluateOptions(n_tokens=60, batch_size=3)).reconstruction
    assert rows["left_out"] == 0
    assert rows["top_share"] > figures.reconstruction["top_share"]


def x_of(feeds):
    (batch,) = next(feeds)
    assert isinstance(batch, ActivationBatch)
    return batch.x


def test_a_live_stream_serves_no_massive_row(sink_lm, sink_store):
    def opened(**changes):
        config = small_config(sink_store, live=True, **changes)
        return open_live({Path("run"): config}, CPU, sink_lm, Ranks())

    stream, again, resumed, keeps = opened(), opened(), opened(), opened(outliers="keep")
    limit = Source([small_config(sink_store)], CPU, sink_lm).selection.domain.max_norm
    assert limit is not None
    rows, every = (torch.cat([x_of(s) for _ in range(6)]) for s in (stream, keeps))
    massive = every.norm(dim=1) > limit
    assert massive.any()
    assert torch.equal(rows[~massive], every[~massive])
    # In its place the next row is served that is not massive.
    wanted = torch.arange(len(every))[~massive]
    after = torch.searchsorted(wanted, massive.nonzero()[:, 0])
    known = after < len(wanted)
    assert torch.equal(rows[massive][known], every[wanted[after[known]]])
    for _ in range(3):
        next(again)
    place = again.feeds[0][0].position.state_dict()
    resumed.feeds[0][0].position.load_state_dict(place)
    assert torch.equal(x_of(resumed), rows[300:400])
    with pytest.raises(UsageError, match="next_above"):
        stream.feeds[0][0].position.load_state_dict(keeps.feeds[0][0].position.state_dict())


def corpus_of_store(store, lm):
    from saelab.activations.corpus import recorded_corpus

    return recorded_corpus(store.manifest.corpus, lm, "train", store.manifest.context_length)


def test_end_to_end_training_lets_massive_activations_pass(sink_lm, sink_store):
    config = small_config(sink_store, objective="e2e", batch_size=40)
    source = Source([config], CPU, sink_lm)
    state, stream, objective = started(config)
    batch = next(stream)
    assert isinstance(batch, TokenBatch)
    done = state.train_on(batch, objective)
    tokens = batch.tokens[batch.mask]
    assert len(done.x) == int((tokens != WORDS.index(SINK)).sum()) < len(tokens)
    assert float(source.calibration_rows().norm(dim=1).max()) < 100


def test_the_first_positions_are_left_out_where_asked(sink_store, sink_lm, tmp_path):
    config = small_config(sink_store, first_position=3, outliers="keep")
    source = Source([config], CPU, sink_lm)
    position = np.concatenate([sink_store.tokens(u).position for u in sink_store.units])
    assert source.selection.left_out.tolist() == np.flatnonzero(position < 3).tolist()
    kept = sink_store.site(SITE).rows(0, sink_store.n_rows)[position >= 3].double()
    variance = float((kept - kept.mean(0)).pow(2).sum(1).mean())
    assert source.selection.read.total_variance == pytest.approx(variance)
    run = train(config, out=tmp_path / "run", device="cpu")
    tokens = torch.full((2, 8), 4)
    covered = run.domain.covers(tokens, torch.ones(2, 8, 16))
    assert covered.int().sum(0).tolist() == [0, 0, 0, 2, 2, 2, 2, 2]
    corpus = corpus_of(run, sink_lm, "held-out")
    for batch in stream(Host.of_run(run, sink_lm), corpus, n_tokens=20, batch_size=3):
        assert not batch.mask[:, :3].any()
    with pytest.raises(UsageError, match="--first-position 8"):
        train(small_config(sink_store, first_position=8), out=tmp_path / "none")


def test_stopping_and_resuming_equals_not_stopping(sink_store, tmp_path):
    whole, stream, objective = started(small_config(sink_store))
    advance(whole, stream, objective, 20)
    first, stream, objective = started(small_config(sink_store))
    advance(first, stream, objective, 9)
    first.save(tmp_path, stream.state_dict())
    second, stream, objective = started(small_config(sink_store))
    place = second.restore(tmp_path)
    assert place is not None
    stream.load_state_dict(place)
    advance(second, stream, objective, 11)
    for name, value in whole.steps.tensors().items():
        assert torch.equal(value, second.steps.tensors()[name]), name


def test_a_run_of_an_older_version_is_the_run_of_the_same_command(arrays, tmp_path):
    """It has every row, and a silence of its own, whose default has changed since."""
    config = array_config(arrays, dead_after=None)
    run = train(config, out=tmp_path / "run", device="cpu")
    path = run.path / "config.json"
    options = dict(run.options)
    del options["outliers"], options["first_position"]
    path.write_text(json.dumps(options | {"dead_after": 10_000_000}))
    again = train(config, out=run.path, device="cpu")
    assert again.config.silence == 10_000_000
    assert again.config.outliers == "keep"
