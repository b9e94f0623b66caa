"""What a splice costs, on a random checkpoint."""

import pytest
import torch

from saelab.config import UsageError
from saelab.evaluation.downstream import Downstream
from saelab.evaluation.evaluate import evaluate
from saelab.host.text import corpus_of
from saelab.lm.bridge import BridgeLanguageModel
from saelab.lm.edits import replace_rows

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def tokens(random_lm):
    high = random_lm.info.d_vocab
    return torch.randint(2, high, (4, 9), generator=torch.Generator().manual_seed(0))


def measure(lm, tokens, x_hat, mask=None):
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    downstream = Downstream(lm.device)
    downstream.update(lm, HOOK, tokens, mask, x_hat[mask])
    return downstream.results()


def test_splicing_the_original_costs_exactly_nothing(random_lm, tokens):
    figures = measure(random_lm, tokens, random_lm.capture(tokens, [HOOK])[HOOK])
    assert figures["ce_spliced"] == figures["ce_plain"]
    assert figures["kl"] == 0
    assert figures["ce_recovered"] == 1
    assert figures["top1_agreement"] == 1


def test_splicing_zeros_recovers_nothing(random_lm, tokens):
    figures = measure(random_lm, tokens, torch.zeros(4, 9, 16))
    assert figures["ce_spliced"] == figures["ce_zero"]
    assert figures["ce_recovered"] == 0


def test_cross_entropy_and_kl_equal_their_formulas(random_lm, tokens):
    x_hat = torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(1))
    figures = measure(random_lm, tokens, x_hat)
    plain = random_lm.logits(tokens)[:, :-1].double().softmax(-1)
    spliced = random_lm.logits(tokens, {HOOK: lambda _: x_hat})[:, :-1].double().softmax(-1)
    target = tokens[:, 1:, None]
    assert figures["ce_plain"] == pytest.approx(float(-plain.gather(2, target).log().mean()))
    kl = (plain * (plain / spliced).log()).sum(-1).mean()
    assert figures["kl"] == pytest.approx(float(kl), rel=1e-4)


def test_logits_that_are_already_known_give_the_same_figures(random_lm, tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    x_hat = torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(1))
    downstream = Downstream(random_lm.device)
    plain = random_lm.run(tokens)
    downstream.update(random_lm, HOOK, tokens, mask, x_hat[mask], plain=plain)
    assert downstream.results() == measure(random_lm, tokens, x_hat)


def test_only_pairs_of_real_tokens_are_counted(random_lm, tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    mask[1, 5:] = False
    downstream = Downstream(random_lm.device)
    x = random_lm.capture(tokens, [HOOK])[HOOK]
    downstream.update(random_lm, HOOK, tokens, mask, x[mask])
    assert downstream.n == 3 * 7 + 3


def test_unmasked_positions_are_left_alone():
    value = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    edited = replace_rows(mask, torch.zeros(3, 4))(value)
    assert not edited[mask].any()
    assert torch.equal(edited[~mask], value[~mask])


def test_an_evaluation_runs_the_model_three_times_a_batch(small_run, random_lm, monkeypatch):
    """Plain, spliced and with zeros; the rows are read on the plain run."""
    runs, plain = [], BridgeLanguageModel._forward
    monkeypatch.setattr(
        BridgeLanguageModel, "_forward", lambda *args: runs.append(args[1]) or plain(*args)
    )
    evaluate(small_run, random_lm, n_tokens=1, batch_size=4)
    # A few positions are tried before, to say how long it will take.
    batch = corpus_of(small_run, random_lm, "held-out").read(0, 4).tokens.shape
    assert [tuple(tokens.shape) for tokens in runs][-3:] == [batch] * 3


def test_an_evaluation_is_saved_in_the_run(small_run, random_lm):
    result = evaluate(small_run, random_lm, n_tokens=50)
    assert small_run.evaluation("reconstruction") == result.reconstruction
    assert small_run.evaluation("downstream") == result.downstream
    assert result.recovery is None


def test_another_model_is_refused_with_both_digests(small_run, random_lm):
    other = random_lm.info.model_copy(update={"weights_digest": "f" * 64})
    impostor = BridgeLanguageModel(random_lm._bridge, other)
    with pytest.raises(UsageError, match=r"was trained on .*weights_digest.*ffffffffffff"):
        evaluate(small_run, impostor)
