"""Fixtures that several packages' tests share."""

import gc
import os
import shutil
import signal
from pathlib import Path

# Kernels run under Triton's interpreter where there is no GPU; it must be told before its import.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import jaxtyping
import pytest
from hypothesis import settings
from interpreted import prepare_once_for_each_kernel
from shape_checks import begin_test, check_first_calls, keep_compiled_what_is_not_checked
from unwritten import mark_all

# What is imported and collected stays, millions of objects: seeking garbage among them took a
# quarter of the collection's time, and half a second after each pass of a page.
gc.disable()

keep_compiled_what_is_not_checked()
check_first_calls()

# A shell's background job ignores Ctrl-C, and so would all processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # By nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Machines are shared: an example's time says nothing about the code.
settings.register_profile("saelab", deadline=None, max_examples=25)
settings.load_profile("saelab")


# What takes longest, longest first: begun last, it would leave the other workers idle at the end.
LONGEST = (
    "tests/claims",
    "tests/apps/test_browser.py",
    "tests/fuzz/test_fuzz.py",
    "tests/lm/test_conformance.py",
    "tests/apps/test_live_browser.py",
    "tests/training/test_kill.py",
    "tests/training/test_loop.py",
    "tests/apps/test_circuit_browser.py",
    "tests/test_demo.py",
    "tests/lm/tiny/test_weights.py",
    "notebooks/01_quickstart.ipynb",
    "tests/training/test_fused_jump.py",
    "tests/analysis/test_kill.py",
    "tests/activations/test_packing.py",
    "tests/activations/test_ranks.py",
    "tests/training/test_fused.py",
    "tests/training/test_optimizer.py",
    "tests/sae/test_contract.py",
    "tests/evaluation/test_evaluate.py",
    "tests/apps/test_sheets.py",
    "tests/activations/test_kill.py",
    "tests/cli/test_bench_variants.py",
    "tests/training/test_origin.py",
    "tests/cli/test_full_disk.py",
    "tests/activations/test_beside.py",
    "tests/training/test_kept.py",
    "tests/kernels/triton/test_batch_select.py",
    "tests/training/test_longer.py",
    "tests/analysis/features/test_tiny_model.py",
    "tests/test_docs.py",
)


# The site of the documentation executes all notebooks.
LONG_NOTEBOOKS = (
    "02_features",
    "03_steering",
    "04_attention_circuits",
    "05_encoders",
    "07_circuits",
)


def group(nodeid):
    """What one worker runs: a file, for its fixtures, or all claims, which share a store."""
    file = nodeid.partition("::")[0]
    return "tests/claims" if file.startswith("tests/claims/") else file


def place(nodeid):
    found = group(nodeid)
    return LONGEST.index(found) if found in LONGEST else len(LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are cores, as many tests wait for a disk, a browser or a process.

    A worker and what its tests start take up to 3 GB.
    """
    import psutil

    room = psutil.virtual_memory().available // (3 << 30)
    return max(1, min((os.cpu_count() or 1) + 1, room))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """By these groups, in the order of the collection."""
    from typing_extensions import override
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        @override
        def _split_scope(self, nodeid):
            return group(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.suffix == ".ipynb" and item.path.stem in LONG_NOTEBOOKS:
            item.add_marker(pytest.mark.exhaustive)
        if group(item.nodeid) == "tests/claims":
            item.add_marker(pytest.mark.unchecked)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place(item.nodeid))


def pytest_collection_finish():
    prepare_once_for_each_kernel()
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Checks would be half the time of a long training, whose steps other tests have checked."""
    unchecked = item.get_closest_marker("unchecked") is not None
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    begin_test()
    try:
        return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _unwritten_memory(request):
    """Kernels that a test interprets must not read unwritten memory; its module names a DEVICE."""
    if getattr(request.module, "DEVICE", None) == "cpu":
        mark_all(request.getfixturevalue("monkeypatch"))


SENTENCE = "the big cat sat on a red mat . and the dog ran under the tree ."
TEXT = " ".join([SENTENCE] * 40)
WORDS = ["<bos>", "<unk>", *sorted(set(SENTENCE.split()))]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A random two-layer GPT-2 with a word tokenizer, saved the way any local checkpoint is."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("checkpoint")
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="<unk>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def random_lm(checkpoint):
    """The random checkpoint, loaded."""
    from saelab.lm.load import load_language_model

    return load_language_model(str(checkpoint), device="cpu")


SINK = "under"
"""The word of SENTENCE whose activations are massive in `sink_lm`; one token in sixteen."""


@pytest.fixture(scope="session")
def sink_lm(checkpoint, tmp_path_factory):
    """The random checkpoint with one word whose residual stream is fifty times the others'."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from saelab.lm.load import load_language_model

    directory = shutil.copytree(checkpoint, tmp_path_factory.mktemp("sink") / "model")
    weights = load_file(directory / "model.safetensors")
    with torch.no_grad():
        weights["transformer.wte.weight"][WORDS.index(SINK)] *= 100
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return load_language_model(str(directory), device="cpu")


@pytest.fixture(scope="session")
def sink_store(sink_lm, tmp_path_factory):
    """The residual stream of `sink_lm`, with massive activations."""
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions, harvest

    directory = tmp_path_factory.mktemp("sinks")
    (directory / "text.txt").write_text(TEXT)
    corpus = load_corpus(str(directory / "text.txt"), sink_lm, context_length=8)
    options = HarvestOptions(n_tokens=400, dtype="float32", batch_size=5)
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    return harvest(sink_lm, hooks, corpus, out=directory / "store", options=options)


@pytest.fixture(scope="session")
def sink_run(sink_store, tmp_path_factory):
    """A TopK SAE that was trained without them, as it is by default."""
    from saelab.training.loop import train

    return train(small_config(sink_store), out=tmp_path_factory.mktemp("sink-runs") / "topk")


@pytest.fixture(scope="session")
def tiny_lm():
    """The shipped language model."""
    from saelab.lm.load import load_language_model

    return load_language_model("tiny", device="cpu")


@pytest.fixture
def text_file(tmp_path) -> Path:
    """640 words that the random checkpoint's tokenizer knows."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def small_store(random_lm, tmp_path_factory):
    """Two sites of the random checkpoint over a few hundred words, in several units."""
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions, harvest

    directory = tmp_path_factory.mktemp("harvest")
    (directory / "text.txt").write_text(TEXT)
    corpus = load_corpus(str(directory / "text.txt"), random_lm, context_length=8)
    options = HarvestOptions(n_tokens=400, dtype="float32", batch_size=5, gradients=True)
    hooks = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
    return harvest(random_lm, hooks, corpus, out=directory / "store", options=options)


@pytest.fixture(scope="session")
def small_run(small_store, tmp_path_factory):
    """A TopK SAE trained for a few steps on the small store."""
    from saelab.training.loop import train

    return train(small_config(small_store), out=tmp_path_factory.mktemp("runs") / "topk")


@pytest.fixture(scope="session")
def mlp_store(random_lm, tmp_path_factory):
    """What the second MLP of the random checkpoint reads, computes and writes, with gradients."""
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions, harvest

    directory = tmp_path_factory.mktemp("mlp")
    (directory / "text.txt").write_text(TEXT)
    corpus = load_corpus(str(directory / "text.txt"), random_lm, context_length=8)
    options = HarvestOptions(n_tokens=400, dtype="float32", batch_size=5, gradients=True)
    hooks = [f"blocks.1.{part}" for part in ("ln2.hook_out", "mlp.hook_post", "hook_mlp_out")]
    return harvest(random_lm, hooks, corpus, out=directory / "store", options=options)


@pytest.fixture(scope="session")
def mlp_run(mlp_store, tmp_path_factory):
    """A transcoder with a skip connection, from what that MLP reads to what it computes."""
    from saelab.training.loop import train

    sites = {"site": "blocks.1.ln2.hook_out", "target_site": "blocks.1.mlp.hook_post"}
    config = small_config(mlp_store, **sites, skip=True)
    return train(config, out=tmp_path_factory.mktemp("runs") / "transcoder")


@pytest.fixture
def on_cpu(monkeypatch):
    """As on a machine without a GPU, for tests that take steps on the CPU themselves."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def small_config(store, **changes):
    """A configuration for `small_store` that trains in a second."""
    from saelab.training.config import TrainConfig

    values = {
        "sae": {"variant": "topk", "d_sae": 32, "k": 4},
        "activations": store.path,
        "site": "blocks.0.hook_resid_post",
        "n_tokens": 4000,
        "batch_size": 100,
        "lr": 1e-2,
        "log_every": 10,
        "dead_after": 1000,
    }
    config = TrainConfig.model_validate(values | changes)
    return config.of(config.sae)  # Without a rate, if none is used.
