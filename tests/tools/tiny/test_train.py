import math

import pytest
import torch
from safetensors.torch import load_file

from saelab.config import UsageError
from saelab.files import sha256_file
from saelab.lm.tiny.grammar import generate_tokens
from saelab.lm.tiny.vocabulary import WORDS
from tools.tiny.architecture import load_model, new_model
from tools.tiny.stream import token_batches
from tools.tiny.train import TinyTrainConfig, learning_rate, train

SHORT = TinyTrainConfig(tokens=6 * 2 * 128, batch=2, warmup_steps=2)


def mean_loss(model):
    tokens = torch.from_numpy(generate_tokens(9, 0, 8)).long()
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    train(out, SHORT)
    return out


def test_a_few_steps_lower_the_loss_on_other_documents(uninterrupted):
    untrained = mean_loss(new_model(SHORT.seed))
    assert untrained == pytest.approx(math.log(len(WORDS)), abs=0.3)
    assert mean_loss(load_model(uninterrupted)) < untrained - 0.1


def test_a_stopped_run_continues_to_the_same_bits(uninterrupted, tmp_path):
    train(tmp_path, SHORT, stop_after=3)
    assert not (tmp_path / "model.safetensors").exists()
    train(tmp_path, SHORT)
    for name in ("checkpoint.safetensors", "model.safetensors"):
        assert sha256_file(tmp_path / name) == sha256_file(uninterrupted / name)


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    before = sha256_file(uninterrupted / "model.safetensors")
    train(uninterrupted, SHORT)
    assert sha256_file(uninterrupted / "model.safetensors") == before


def test_other_arguments_for_a_begun_run_are_refused(uninterrupted):
    with pytest.raises(UsageError, match=r"seed=0.*another --out"):
        train(uninterrupted, SHORT.model_copy(update={"seed": 1}))


def test_weights_are_saved_rounded_to_bf16(uninterrupted):
    saved = load_file(uninterrupted / "model.safetensors")
    trained = load_file(uninterrupted / "checkpoint.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    for name, tensor in saved.items():
        assert torch.equal(tensor, trained[f"weight/{name}"].bfloat16())


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, same, other = (new_model(seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_rate_rises_stays_and_falls():
    config = TinyTrainConfig(tokens=100 * 128, batch=1, warmup_steps=10, lr=1.0)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 40) == 1.0
    assert learning_rate(config, 85) == pytest.approx(0.5)


@pytest.mark.slow
def test_worker_processes_deliver_the_same_batches_in_order():
    with token_batches(0, 4, range(2, 6), 1) as batches:
        received = list(batches)
    with token_batches(0, 4, range(2, 6), 0) as batches:
        expected = list(batches)
    assert all(torch.equal(a, b) for a, b in zip(received, expected, strict=True))
