"""Reading on gives what a whole forward pass gives, or is not offered."""

from typing import Any

import pytest
import torch
from lm.cases import GROUPED, SHAPE, save

from saelab.lm.bridge import BridgeLanguageModel
from saelab.lm.load import load_language_model
from saelab.lm.reading import Past, ReadsOn

LARGE: dict[str, Any] = {"initializer_range": 0.3}
RESIDUAL = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox"])
def lm(request, checkpoint, tmp_path_factory):
    """A random model of each way to place tokens, with weights large enough for them to matter."""
    import transformers

    if request.param == "gpt2":
        return load_language_model(str(checkpoint), device="cpu")
    path = tmp_path_factory.mktemp(request.param)
    shape = GROUPED if request.param == "llama" else SHAPE
    save(path, checkpoint, transformers.CONFIG_MAPPING[request.param](**shape, **LARGE))
    return load_language_model(str(path), device="cpu")


@pytest.fixture
def tokens():
    return torch.randint(1, 13, (3, 9), generator=torch.Generator().manual_seed(0))


def read(lm, tokens, pieces, edits=None) -> torch.Tensor:
    """The logits of all tokens, read in pieces of these lengths."""
    past, logits = None, []
    for piece in tokens.split(pieces, dim=1):
        found, past = lm.read_on(piece, past, edits)
        logits.append(found.logits)
    return torch.cat(logits, dim=1)


def test_reading_in_pieces_equals_reading_at_once(lm, tokens):
    assert lm.reads_on
    whole = lm.logits(tokens)
    for pieces in ([9], [4, 5], [3, 1, 1, 4]):
        torch.testing.assert_close(read(lm, tokens, pieces), whole, atol=1e-4, rtol=0)


def test_edits_are_of_the_new_tokens_and_stay_in_what_is_kept(lm, tokens):
    def edit(x):
        return 2 * x + 1

    whole = lm.logits(tokens, {RESIDUAL: edit})
    found = read(lm, tokens, [5, 2, 2], {RESIDUAL: edit})
    torch.testing.assert_close(found, whole, atol=1e-3, rtol=0)
    assert (whole - lm.logits(tokens)).abs().max() > 0.01


def test_a_bridge_is_a_model_that_reads_on(lm):
    assert isinstance(lm, ReadsOn)


def test_rows_that_are_taken_out_read_on_alone(lm, tokens):
    _, past = lm.read_on(tokens[:, :5], None)
    which = torch.tensor([2, 0, 2])
    copy = past.rows(which)
    assert isinstance(copy, Past)
    found = lm.read_on(tokens[which, 5:], copy)[0].logits
    expected = lm.logits(tokens)[:, 5:]
    torch.testing.assert_close(found, expected[which], atol=1e-4, rtol=0)
    # The copy has read on, what it was made from has not.
    torch.testing.assert_close(
        lm.read_on(tokens[:, 5:], past)[0].logits, expected, atol=1e-4, rtol=0
    )


class Forgets(BridgeLanguageModel):
    """Gives new tokens no past."""

    def read_on(self, tokens, past, edits=None):  # pyrefly: ignore[missing-override-decorator]
        return super().read_on(tokens, None, edits)


class TakesNoCache(BridgeLanguageModel):
    """Its forward pass has no such argument."""

    def read_on(self, tokens, past, edits=None):  # pyrefly: ignore[missing-override-decorator]
        raise TypeError("unexpected keyword argument 'past_key_values'")


@pytest.mark.parametrize("kind", [Forgets, TakesNoCache])
def test_a_model_that_would_read_on_wrongly_does_not_offer_it(lm, kind):
    assert not kind(lm._bridge, lm.info).reads_on


def test_an_edit_that_is_never_applied_is_an_error(random_lm, tokens):
    with pytest.raises(RuntimeError, match="never applied"):
        random_lm.read_on(tokens, None, {"blocks.1.attn.qkv.hook_in": lambda x: x})
