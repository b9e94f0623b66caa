"""A plan's laws against what was measured, and against each other."""

import json
from dataclasses import replace

import pytest

from saelab.bench.costs import Fleet, Work, measuring_memory, sae_memory, step_parts, work
from saelab.bench.machine import Rates, StepShape
from saelab.bench.pace import STEPS, kinds, measured, pace_of_kind, pace_of_road
from saelab.bench.ways import by_store, cheapest, one_pass, site_by_site, ways
from saelab.cli import main
from saelab.config import UsageError
from saelab.lm.shape import ModelShape, model_shape
from saelab.sae.variants import sized

SHAPE = ModelShape(
    "a model", 12, 768, 12, 64, 50257, 3072, 85_000_000, 85_000_000, 39_000_000, 1024
)
SITE = "blocks.6.hook_resid_post"
GIB = 2**30
BOTH = {"topk": 3.6e6, "batch-topk": 3.2e6}
"""Tokens per second of a whole training from a store, 768 / 32768 / 32 on an H100."""


def job(sites=(SITE,), d_sae=32768, variant="topk", **options):
    found = work(SHAPE, SHAPE.sites(sites), sized(variant, d_sae, 32), 10**8, batch_size=8192)
    return replace(found, **options)


@pytest.mark.parametrize("device", ["h100", "h200"])
def test_the_law_of_a_step_is_near_every_step_that_was_measured(device):
    found, pace = measured(f"step-{device}.json"), pace_of_kind(device)
    alive = [step for step in found["steps"] if not step["shape"].get("dead")]
    steps = [step for step in alive if step["way"] == "fused"]
    assert len(steps) >= 15
    for step in steps:
        variant, shape = step["variant"], StepShape(**step["shape"])
        law = pace.step_parts(shape, variant, products=1, fused=True, half=True)
        within = 0.1 if variant == "topk" else 0.25
        assert sum(law.values()) == pytest.approx(step["seconds"], rel=within), step
        matrices = 1 if variant == "k-sparse" else 2
        assert pace.rates.floor(shape, matrices=matrices) == pytest.approx(step["floor"], rel=0.02)


def test_steps_of_other_kinds_take_what_an_h100_took():
    fleet = Fleet(pace_of_kind("h100"))
    for seconds, one in [(9.55e-3, job(half=False)), (6.7e-3, job(rule=None))]:
        parts = step_parts(one, fleet, 1, 1536)
        assert sum(parts.values()) == pytest.approx(seconds, rel=0.1)
    rates = {v: 10**8 / by_store(job(variant=v), fleet, 1).seconds["steps"] for v in BOTH}
    assert rates == pytest.approx(BOTH, rel=0.15)


def test_memory_is_near_the_peaks_of_the_fused_step_on_an_h100():
    for d_in, d_sae, peak in ((768, 32768, 1.53), (2304, 65536, 6.08), (4096, 131072, 18.1)):
        shape = replace(SHAPE, d_model=d_in)
        held = sae_memory(replace(job(d_sae=d_sae), shape=shape), pace_of_kind("h100"), 1)
        assert sum(held.values()) / GIB == pytest.approx(peak, rel=0.08)


def test_one_matrix_is_counted_once_and_a_pursuit_for_each_of_its_steps():
    fleet, two = Fleet(pace_of_kind("h200")), job()
    one, pursuit = job(variant="k-sparse"), job(variant="matching-pursuit")
    kept = [sae_memory(j, fleet.pace, 1)["weights and moments"] for j in (two, one, pursuit)]
    assert kept[0] == 2 * kept[1] == 2 * kept[2]
    steps = [sae_memory(j, fleet.pace, 1)["step"] for j in (one, pursuit)]
    assert steps[1] - steps[0] == 2 * (8192 * 32 * 768 + 32768**2)


@pytest.mark.parametrize(
    ("d", "d_sae", "k", "ms"), [(768, 32768, 32, 10.87), (2304, 65536, 64, 260.6)]
)
def test_a_pursuit_takes_what_an_h200_took_with_a_gram_matrix_and_without(d, d_sae, k, ms):
    """saelab/kernels/README.md has the measurements."""
    one = work(
        replace(SHAPE, d_model=d),
        [SITE],
        sized("matching-pursuit", d_sae, k),
        10**8,
        batch_size=8192,
    )
    parts = step_parts(one, Fleet(pace_of_kind("h200")), 1, 2 * d)
    assert 1e3 * sum(parts.values()) == pytest.approx(ms, rel=0.12)
    assert (STEPS in parts) == (d_sae <= 32768)


def test_moments_in_bfloat16_take_4_bytes_a_weight_less_and_8_less_traffic():
    fleet, weights = Fleet(pace_of_kind("h200")), 32768 * 1536
    full, half = job(), job(moments="bfloat16")
    kept = [sae_memory(j, fleet.pace, 1)["weights and moments"] for j in (full, half)]
    assert kept == [14 * weights, 10 * weights]
    parts = [step_parts(j, fleet, 1, 1536) for j in (full, half)]
    saved = fleet.pace.step * 8 * weights / fleet.pace.rates.copy
    assert sum(parts[0].values()) - sum(parts[1].values()) == pytest.approx(saved)


def test_a_shape_from_the_configuration_is_the_loaded_models(tiny_lm):
    shape, info = model_shape("tiny"), tiny_lm.info
    for name in ("n_layers", "d_model", "n_heads", "d_head", "d_vocab"):
        assert getattr(shape, name) == getattr(info, name)
    for part in ("hook_resid_post", "attn.hook_z", "mlp.hook_post", "hook_mlp_out"):
        assert shape.width(f"blocks.1.{part}") == tiny_lm.width(f"blocks.1.{part}")
    assert shape.sites(["blocks.*.hook_mlp_out"]) == tuple(
        f"blocks.{i}.hook_mlp_out" for i in range(info.n_layers)
    )
    with pytest.raises(UsageError, match="has 4 layers, numbered from 0 to 3"):
        shape.width("blocks.4.hook_resid_post")


def test_a_pass_stops_after_its_last_site_and_experts_rest():
    assert SHAPE.layers_to([SITE, "blocks.2.hook_mlp_out"]) == 7
    assert SHAPE.operations(12, 128) == pytest.approx(2 * 85e6 + 4 * 128 * 768 * 12)
    mixture = replace(SHAPE, used=SHAPE.used // 4)
    assert mixture.operations(12, 0) == SHAPE.operations(12, 0) / 4


def test_a_measured_road_is_planned_as_it_was_measured(tmp_path):
    size = {"d_in": 768, "d_sae": 8192, "k": 32, "batch": 2048}
    stages = {"start": 3.0, "harvest": 9.0, "train": 50.0, "evaluate": 8.0, "features": 7.0}
    found = {
        "benchmark": "road",
        "device": "cpu",
        "memory": 1e10,
        "rates": vars(Rates(1e11, 1e10)),
        "setting": {"half": False, "variant": "topk", "d_model": 768, "d_vocab": 9, "d_sae": 8192},
        "step": {"shape": size, "products": 1, "seconds": 2.5, "way": "autograd"},
        "read": 1e9,
        "forward": 0.5,
        "stages": [
            {"name": n, "tokens": 30_000, "seconds": t, "fixed": t / 10, "floor": 0.8 * t}
            for n, t in stages.items()
        ],
    }
    path, kind = tmp_path / "road.json", pace_of_kind("h100")
    path.write_text(json.dumps(found))
    pace = pace_of_road(path, kind)
    same = replace(
        work(SHAPE, [SITE], sized("topk", 8192, 32), 20_480, batch_size=2048), half=False
    )
    way = by_store(same, Fleet(pace), 1)
    assert way.seconds["steps"] == pytest.approx(10 * 2.5 * 0.9 / 0.8)
    passes = SHAPE.operations(7, 128) * 20_480 / 0.5e11
    assert way.seconds["forward passes"] == pytest.approx(passes * 0.9 / 0.8)
    assert pace.start == pytest.approx(3.0 + (0.9 + 5.0 + 0.8) / 3)
    path.write_text(json.dumps({**found, "stages": []}))
    with pytest.raises(UsageError, match="is damaged"):
        pace_of_road(path, kind)


def test_every_kind_has_a_pace_and_says_what_is_assumed():
    for name, kind in kinds().items():
        pace = pace_of_kind(name)
        assert 0.5 * kind["sheet"]["copy"] < pace.rates.copy < kind["sheet"]["copy"]
        assert pace.sources[-1].startswith("Assumed, not measured: ")
        assert ("never measured" in pace.sources[0]) == ("steps" not in kind)
    with pytest.raises(UsageError, match="--kind 'h300' is not in the table"):
        pace_of_kind("h300")


def test_gpus_share_many_saes_and_a_wide_one():
    pace, every = pace_of_kind("h200"), job(("blocks.*.hook_resid_post",))
    one, four = (by_store(every, Fleet(pace, n), 1) for n in (1, 4))
    assert one.seconds["steps"] == pytest.approx(4 * four.seconds["steps"])
    wide = job(d_sae=2**24)
    alone = ways(wide, Fleet(pace))[0]
    assert "weights and moments" in str(alone.problem)
    least = int(str(alone.problem).split("; ")[-1].split()[0])
    assert least > 1
    shared, half = (by_store(wide, Fleet(pace, n, n), n) for n in (least, least // 2))
    assert shared.problem is None
    assert half.problem is not None
    assert 0 < shared.parts["exchange"] < sum(shared.parts.values())
    assert shared.traffic["between GPUs"] > 0
    gated = ways(job(variant="gated", d_sae=2**24), Fleet(pace, 64))[0]
    assert gated.shards == 1
    assert "no number of them holds an SAE" in str(gated.problem)


def test_all_gpus_on_one_sae_end_sooner_than_one():
    found = ways(job(), Fleet(pace_of_kind("h200"), 4))
    alone, shared = found[:2]
    assert (alone.gpus, shared.gpus, shared.name) == (1, 4, "store, 4 GPUs an SAE")
    assert shared.seconds["steps"] < alone.seconds["steps"]


def test_what_must_hold_the_model_is_told_where_it_does_not_fit():
    shape = replace(SHAPE, block=60 * 10**9)
    assert "harvest: a GPU needs" in str(
        by_store(replace(job(), shape=shape), Fleet(pace_of_kind("h100")), 1).problem
    )
    wide = job(d_sae=2**25)
    way = by_store(wide, Fleet(pace_of_kind("h200"), 64), 64)
    assert "--device cpu" in str(way.note)
    assert "evaluate" not in way.seconds
    assert measuring_memory(wide)["SAE"] == 4 * 2 * 768 * 2**25


def test_between_hosts_an_exchange_takes_longer_and_does_not_shrink():
    pace, wide = pace_of_kind("h200"), job(d_sae=2**24)
    inside, outside = (
        step_parts(wide, Fleet(pace, 16, per_host=n), 16, 1536)["exchange"] for n in (16, 2)
    )
    assert outside > inside
    product = [step_parts(wide, Fleet(pace, n), n, 1536)["encoder's product"] for n in (16, 32)]
    assert product[0] == pytest.approx(2 * product[1])


def test_replicas_pay_where_a_batch_is_large_against_the_latents_of_a_gpu():
    fleet = Fleet(pace_of_kind("h200"), 32)
    for rows, faster in ((8192, False), (2**18, True)):
        found = ways(job(batch_size=rows), fleet)[:3]
        assert [way.name for way in found] == [
            "store",
            "store, 32 GPUs an SAE",
            "store, 32 GPUs an SAE, 4 replicas",
        ]
        shared, replicas = found[1:]
        assert (replicas.gpus, replicas.shards, replicas.replicas) == (32, 8, 4)
        assert (replicas.seconds["steps"] < shared.seconds["steps"]) is faster
        sent = replicas.traffic["gradients of replicas"] / job(batch_size=rows).n_steps
        assert sent == 32 * 1.5 * 4 * (32768 // 8) * (2 * 768 + 2)
    held = sae_memory(job(replicas=4), fleet.pace, 8)
    assert held["stored gradients"] == held["weights and moments"] * 4 / 14
    assert len(ways(job(), Fleet(pace_of_kind("h200"), 8))) == 4  # Not within one host.


def test_the_disk_breaks_first_and_one_pass_is_cheaper_than_many():
    every = job(("blocks.*.hook_resid_post",))
    found = ways(every, Fleet(pace_of_kind("h200"), 4, disk=10**9))
    by_name = {way.name: way for way in found}
    assert by_name["store"].disk == 10**8 * 12 * 768 * 2
    assert "1 GB is free" in str(by_name["store"].problem)
    best = cheapest(found)
    assert best is not None
    assert best.name == "live, all in one pass"
    assert best.gpu_hours < by_name["live, each SAE alone"].gpu_hours


def test_a_pass_is_repeated_where_not_all_saes_fit_at_once():
    every = job(("blocks.*.hook_resid_post",))
    pace = pace_of_kind("h200")
    once = one_pass(every, Fleet(pace))
    tight = one_pass(every, Fleet(replace(pace, memory=sum(once.memory.values()) / 2)))
    assert tight.problem is None
    assert sum(tight.memory.values()) < sum(once.memory.values())
    n = int(tight.name.split()[-2])
    assert n >= 2
    assert tight.seconds["forward passes"] == pytest.approx(n * once.seconds["forward passes"])
    assert tight.seconds["steps"] == pytest.approx(once.seconds["steps"])


def test_what_a_variant_needs_decides_its_ways():
    fleet = Fleet(pace_of_kind("h100"))
    gradient, plain = job(variant="gradient-topk"), job()
    assert by_store(gradient, fleet, 1).disk == 2 * by_store(plain, fleet, 1).disk
    assert "gradients" in str(site_by_site(gradient, fleet).problem)
    gated = by_store(job(variant="gated"), fleet, 1)
    assert gated.seconds["steps"] > 3 * by_store(plain, fleet, 1).seconds["steps"]
    for variant, said in (("bsc", "whose time no law"), ("crosscoder", "whose cost no law")):
        with pytest.raises(UsageError, match=said):
            job(variant=variant, d_sae=64)
    transcoder = work(SHAPE, [SITE], sized("topk", 64, 4), 1000, ["blocks.6.hook_mlp_out"])
    assert isinstance(transcoder, Work)
    assert by_store(transcoder, fleet, 1).disk == 1000 * 2 * 2 * 768


def test_the_verb_prints_the_ways_and_writes_them(tmp_path, capsys):
    file = tmp_path / "plan.json"
    arguments = ["plan", "--model", "tiny", "--sites", "blocks.*.hook_resid_post"]
    arguments += ["--d-sae", "1024"]
    arguments += ["--n-tokens", "1000000", "--k", "12", "--gpus", "2", "--kind", "a100"]
    assert main([*arguments, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "4 SAEs (topk, 1024 latents, k 12)" in out
    assert "Cheapest that fits" in out
    assert out.splitlines()[-1] == str(file)
    found = json.loads(file.read_text())
    assert len(found["ways"]) == 4
    assert found["cheapest"] in [way["name"] for way in found["ways"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--model", "none-such"], "Cannot load the model 'none-such'"),
        (["--sites", "blocks.9.hook_resid_post"], "has 4 layers"),
        (["--sites", "blocks.0.attn.hook_pattern"], "does not follow from a config.json"),
        (["--sites", "blocks.*.hook_resid_post", "blocks.2.hook_resid_post"], "named twice"),
        (["--kind", "h300"], "is not in the table"),
        (["--moments", "bfloat16", "--variant", "gated"], "a gated SAE has none on"),
        (["--k", "2000"], "k=2000 exceeds d_sae=1024"),
        (["--d-sae", str(2**40 + 1)], "greater than 0 up to 1,099,511,627,776"),
        (["--context-length", "4096"], "more than the 128 positions"),
        (["--rates", "none.json"], "none.json"),
        (["--target-sites", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"], "1 sites and 2"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(changes, said, capsys):
    arguments = ["plan", "--model", "tiny", "--sites", "blocks.1.hook_resid_post"]
    width = [] if "--d-sae" in changes else ["--d-sae", "1024"]
    assert main([*arguments, *width, "--n-tokens", "1000", *changes]) == 2
    assert said in capsys.readouterr().err
