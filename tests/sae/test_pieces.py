"""Processes that hold an SAE together write and calibrate it as one process does, in pieces."""

import weakref

import pytest
import torch
from activations.forked import all_end_well
from safetensors.torch import load_file
from torch.distributed import TCPStore
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from saelab import shard
from saelab.sae.spread import keep_shard
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.transcoder import make_transcoder
from saelab.sae.variants import SAE_CONFIG

D_IN, D_SAE, WORLD, PIECE = 48, 101, 2, 64
SAES = {
    "topk": {"variant": "topk", "k": 3},
    "batch": {"variant": "batch-topk", "k": 2.5},
    "abs": {"variant": "abs-topk", "k": 3, "selection": "batch"},
    "jump": {"variant": "jumprelu", "k": None},
}


class Allocated(TorchDispatchMode):
    """The most bytes that new tensors have taken at a time."""

    live = peak = 0

    @override
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        real = isinstance(out, torch.Tensor) and not out.is_meta
        if real and out.untyped_storage().data_ptr() not in known:
            size = out.untyped_storage().nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(out, self._free, size)
        return out

    def _free(self, size):
        self.live -= size


def build(name):
    sae = SAE_CONFIG.validate_python(SAES[name] | {"d_sae": D_SAE})
    generator = torch.Generator().manual_seed(0)
    sae = sae.build(D_IN, generator)
    if name == "topk":
        make_transcoder(sae, 5, skip=True, generator=generator)
    rows = torch.randn(300, D_IN, generator=generator)
    return sae, rows


def calibrated(name, rank=0, world=1):
    sae, rows = build(name)
    if world > 1:
        keep_shard(sae, rank, world)
    sae.calibrate(rows)
    sae.rescale(0.5)
    return sae


def process(rank, port, out):
    store = TCPStore("localhost", port)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    shard.PIECE = PIECE
    for name in SAES:
        sae = calibrated(name, rank, WORLD)
        with Allocated() as allocated:
            save_sae(sae, out / name, {"fact": "yes"})
        (out / f"{name} {rank}").write_text(str(allocated.peak))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("pieces")
    all_end_well(WORLD, process, out)
    return out


@pytest.mark.parametrize("name", SAES)
def test_the_file_in_pieces_is_that_of_one_process(name, written, tmp_path):
    alone = calibrated(name)
    save_sae(alone, tmp_path / "alone", {"fact": "yes"})
    found = load_file(written / name)
    for key, value in load_file(tmp_path / "alone").items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-5, equal_nan=True)
    assert load_sae(written / name).config == alone.config
    if name in {"topk", "jump"}:  # No number of these depends on the order of a sum.
        assert (written / name).read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize("name", SAES)
def test_no_process_has_more_than_its_part_and_a_few_pieces_in_memory(name, written):
    most = max(int((written / f"{name} {rank}").read_text()) for rank in range(WORLD))
    row = 4 * (D_SAE + 1)  # One row of W_enc, the least that is sent.
    assert 0 < most <= 6 * max(row, 4 * PIECE)
    assert most < D_IN * D_SAE  # A quarter of a matrix, in bytes.
