"""Recorded forward passes give what plain ones give."""

from unittest.mock import MagicMock

import pytest
import torch
from lm.cases import GROUPED, save

from saelab.lm import replay
from saelab.lm.hf import load_hugging_face_model
from saelab.lm.replay import KEPT, KNOWN, PLAIN, CudaRecording, Replays

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


def doubled(tokens):
    return {HOOKS[0]: 2.0 * tokens[..., None]}


class Counting:
    """Records a pass as its negative, which shows who ran, unless `fails`."""

    def __init__(self, *, fails=False):
        self.shapes, self.fails = [], fails

    def __call__(self, run, tokens):
        self.shapes.append(tuple(tokens.shape))
        if self.fails:
            return None
        return lambda given: {name: -value for name, value in run(given).items()}


def ran(replays, *shape, hooks=HOOKS[:1]):
    """Whether a recorded pass answered."""
    return bool(
        replays.run(doubled, torch.ones(shape, dtype=torch.long), hooks)[HOOKS[0]].min() < 0
    )


def test_a_shape_is_recorded_after_a_few_passes_and_no_other_is():
    recording = Counting()
    replays = Replays(lambda: recording)
    assert [ran(replays, 2, 3) for _ in range(PLAIN + 2)] == [False] * PLAIN + [True] * 2
    assert not ran(replays, 2, 4)
    assert not ran(replays, 2, 3, hooks=HOOKS)
    assert recording.shapes == [(2, 3)]


def test_what_cannot_be_recorded_is_tried_once_and_runs_plainly():
    recording = Counting(fails=True)
    replays = Replays(lambda: recording)
    assert not any(ran(replays, 2, 3) for _ in range(PLAIN + 5))
    assert recording.shapes == [(2, 3)]


def test_the_last_used_recordings_are_kept():
    recording = Counting()
    replays = Replays(lambda: recording)
    shapes = [(1, n) for n in range(1, KEPT + 2)]
    for shape in shapes:
        for _ in range(PLAIN + 1):
            ran(replays, *shape)
    assert recording.shapes == shapes
    assert ran(replays, *shapes[-1])
    assert recording.shapes == shapes
    ran(replays, *shapes[0])
    assert recording.shapes == [*shapes, shapes[0]]


def test_texts_of_ever_new_lengths_leave_nothing_behind():
    replays = Replays(Counting)
    for n in range(1, 5 * KNOWN):
        assert not ran(replays, 1, n)
    assert len(replays._passes) == KNOWN
    assert not replays._recorded


def pretended(monkeypatch):
    """CUDA that does nothing."""
    cuda = MagicMock()
    cuda.Stream.side_effect = lambda *_: object()
    monkeypatch.setattr(torch, "cuda", cuda)
    return cuda


def test_a_pass_recorded_in_inference_mode_is_replayed_outside(monkeypatch):
    pretended(monkeypatch)
    tokens = torch.ones(1, 3, dtype=torch.long)
    with torch.inference_mode():
        replayed = CudaRecording()(doubled, tokens)
    assert replayed is not None
    with torch.no_grad():
        assert not replayed(tokens)[HOOKS[0]].is_inference()


def test_all_passes_are_recorded_on_one_stream(monkeypatch):
    """Of a shared memory, a stream takes only what was taken on it."""
    cuda = pretended(monkeypatch)
    recording = CudaRecording()
    for n in range(1, 4):
        assert recording(doubled, torch.ones(1, n, dtype=torch.long)) is not None
    assert len({call.args[0] for call in cuda.stream.call_args_list}) == 1


@pytest.fixture(scope="module")
def sliding(checkpoint, tmp_path_factory):
    """A model whose attention sees four tokens."""
    import transformers

    path = tmp_path_factory.mktemp("sliding")
    save(path, checkpoint, transformers.MistralConfig(**GROUPED, sliding_window=4))
    return load_hugging_face_model(str(path), device="cpu")


@pytest.mark.parametrize("length", [3, 12])
def test_a_pass_without_a_past_is_transformers_own(sliding, length):
    tokens = torch.randint(1, 13, (3, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = sliding._model(tokens, use_cache=False, output_hidden_states=True)
    found = sliding.run(tokens, hooks=HOOKS[:1])
    torch.testing.assert_close(found.logits, own.logits, rtol=0, atol=0)
    seen = sliding.capture(tokens, HOOKS[:1])[HOOKS[0]]
    torch.testing.assert_close(seen, own.hidden_states[1], rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("length", [3, 12])
def test_recorded_passes_on_a_gpu_are_plain_ones_but_for_rounding(sliding, length, monkeypatch):
    lm = type(sliding)(sliding._model.cuda(), sliding._tokenizer._tokenizer, sliding.info)
    texts = [torch.randint(1, 13, (3, length)).cuda() for _ in range(PLAIN + 3)]
    found = [lm.capture(text, HOOKS) for text in texts]
    assert None not in lm._replays._recorded.values()
    assert lm._replays._recorded
    monkeypatch.setattr(replay, "PLAIN", 10**9)
    plain = type(lm)(lm._model, lm._tokenizer._tokenizer, lm.info)
    for text, values in zip(texts, found, strict=True):
        for hook, expected in plain.capture(text, HOOKS).items():
            torch.testing.assert_close(values[hook], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pass_does_not_wait_for_the_gpu(sliding):
    lm = type(sliding)(sliding._model.cuda(), sliding._tokenizer._tokenizer, sliding.info)
    tokens = torch.ones(3, 3, dtype=torch.long, device="cuda")
    lm.capture(tokens, HOOKS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(PLAIN - 1):
            lm.capture(tokens, HOOKS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recordings_of_ever_new_shapes_take_no_more_memory(sliding):
    lm = type(sliding)(sliding._model.cuda(), sliding._tokenizer._tokenizer, sliding.info)
    reserved = []
    for length in range(16, 4, -1):
        for _ in range(PLAIN + 1):
            lm.capture(torch.ones(256, length, dtype=torch.long), HOOKS)
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[KEPT + 1]
