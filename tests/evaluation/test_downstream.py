"""What a splice costs, on a random checkpoint."""

import pytest
import torch

from saelab.config import UsageError
from saelab.evaluation.downstream import Downstream
from saelab.evaluation.evaluate import evaluate
from saelab.host.host import Host
from saelab.host.text import corpus_of, half_by_context, stream
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


def test_evaluation_reads_only_held_out_text(small_run, random_lm, small_store):
    trained_on = {tuple(context) for context in small_store.tokens(0).contexts.tolist()}
    corpus = corpus_of(small_run, random_lm, "held-out")
    assert corpus.facts["split"] == "held-out"
    assert small_store.manifest.corpus["split"] == "train"
    assert corpus.facts["text_xxh3"] == small_store.manifest.corpus["text_xxh3"]
    assert len(trained_on) <= small_store.manifest.n_contexts


def test_a_text_that_has_changed_since_is_refused(small_run, random_lm, monkeypatch):
    record = small_run.provenance()
    record["corpus"]["text_xxh3"] = "0" * 32
    monkeypatch.setattr(small_run, "provenance", lambda: record)
    with pytest.raises(UsageError, match="has changed since"):
        corpus_of(small_run, random_lm, "held-out")


def test_the_streams_rows_are_the_models_at_the_masked_positions(small_run, random_lm):
    corpus = corpus_of(small_run, random_lm, "train")
    batches = list(stream(Host.of_run(small_run, random_lm), corpus, n_tokens=60, batch_size=4))
    assert sum(len(b.x) for b in batches[:-1]) < 60 <= sum(len(b.x) for b in batches)
    batch = batches[1]
    expected = random_lm.capture(batch.tokens, [HOOK])[HOOK][batch.mask]
    assert torch.equal(batch.x, expected)
    halves = half_by_context(batch)
    contexts = batch.first + batch.mask.nonzero()[:, 0].numpy()
    assert (halves == (contexts % 2 == 0)).all()


def test_asking_for_logits_changes_no_row(small_run, random_lm):
    corpus = corpus_of(small_run, random_lm, "train")
    plain, asked = (
        next(
            stream(
                Host.of_run(small_run, random_lm),
                corpus,
                n_tokens=1,
                batch_size=4,
                with_predictions=wanted,
            )
        )
        for wanted in (False, True)
    )
    assert torch.equal(asked.x, plain.x)
    assert plain.out is None
    assert asked.out is not None
    assert torch.equal(asked.out.logits, random_lm.logits(plain.tokens))


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
