"""Probing, TPP and SCR on rows whose truth is planted, and their algebra against token by token."""

import math

import pytest
import torch
from evaluation.cases import sae_with, sparse

from saelab.config import UsageError
from saelab.evaluation.probing import code_moments
from saelab.evaluation.rows import Rows, columns
from saelab.evaluation.tasks.data import Drawn, balanced, draw
from saelab.evaluation.tasks.options import RULES, Cost, FigureWithInterval
from saelab.evaluation.tasks.probes import few_columns, interval, mean_over_tasks, wilson
from saelab.evaluation.tasks.removal import N_VALUES, MeanProbe, Removal
from saelab.evaluation.tasks.scr import SCR, Scr, ScrTask, scr_of
from saelab.evaluation.tasks.sparse_probing import KS, probe_class
from saelab.evaluation.tasks.text_means import TextMeans
from saelab.evaluation.tasks.tpp import tpp_of

D = 12
SAEBENCH, PACKAGED = RULES["saebench"], RULES["sae-probes"]


def pooled(codes: torch.Tensor, group: torch.Tensor) -> tuple[Rows, Drawn]:
    """Mean rows x = z of an SAE whose atoms are the axes, with a little noise that it leaves."""
    draw_noise = torch.Generator().manual_seed(3)
    x = codes + 0.01 * torch.randn(codes.shape, generator=draw_noise)
    fit = torch.arange(len(codes)) % 4 != 3
    rows = Rows(x, sparse(codes, ragged=True), torch.zeros(len(x), dtype=torch.long), fit)
    return rows, Drawn([str(i) for i in range(len(x))], group, fit)


def classes(n_classes: int, n: int = 800) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes where latent i fires, at 1, for class i alone; the others are noise of any class."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(n).repeat_interleave(4)[:n] % n_classes
    codes = torch.rand(n, D, generator=generator) * (torch.rand(n, D, generator=generator) < 0.3)
    codes[:, :n_classes] = torch.nn.functional.one_hot(group, n_classes).float()
    return codes, group


def test_one_latent_that_knows_the_class_is_found_and_random_ones_are_not_enough():
    codes, group = classes(2)
    codes[:, 1] = 0
    rows, drawn = pooled(codes, group)
    found = probe_class(rows, drawn, 1, SAEBENCH, seed=0)
    assert found["best"][0] == 0
    assert [one.accuracy for one in found["latents"]] == [1.0] * len(KS)
    assert found["dense"].accuracy == found["channels"][0].accuracy == 1
    assert found["mean_difference"].accuracy > 0.98
    one_of_twelve = found["random"][0]
    assert 0.45 < one_of_twelve.accuracy < 0.8
    assert found["latents"][0].low > 0.95


def test_what_nobody_knows_is_chance_within_its_interval():
    codes, _ = classes(2)
    generator = torch.Generator().manual_seed(9)
    rows, drawn = pooled(codes, torch.randint(2, (len(codes),), generator=generator))
    found = probe_class(rows, drawn, 1, PACKAGED, seed=0)
    for one in (*found["latents"], found["dense"], found["mean_difference"]):
        assert abs(one.accuracy - 0.5) < 0.12
    assert found["latents"][0].low < 0.5 < found["latents"][0].high


def test_rules_rank_latents_by_the_difference_or_relative_to_their_activation():
    """A latent that fires weakly, but for one class alone, wins only where scale is divided."""
    codes, group = classes(2)
    codes[:, :2] = 0
    codes[:, 0] = 10 + 2 * group.float() * (torch.arange(len(group)) % 2)
    codes[:, 1] = 0.1 * group.float()
    rows, drawn = pooled(codes, group)
    best = {n: probe_class(rows, drawn, 1, RULES[n], seed=0)["best"][0] for n in RULES}
    assert best == {"saebench": 0, "sae-probes": 1}


def test_few_columns_have_the_minimum_of_the_l2_penalty_on_raw_columns():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 3, generator=generator).double() * torch.tensor([0.05, 1.0, 30.0])
    label = x @ torch.tensor([20.0, 1.0, 0.02]).double() > 0.3
    probe = few_columns(x, label)
    bias = probe(torch.zeros(1, 3))
    weights = torch.cat([probe(torch.eye(3)) - bias, bias]).requires_grad_()
    scores = x @ weights[:3] + weights[3]
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    total = loss(scores, label.double(), reduction="sum") + weights[:3].pow(2).sum() / 2
    total.backward()
    assert weights.grad is not None
    # It is convex, so a gradient of zero is the minimum.
    assert float(weights.grad.abs().max()) < 1e-4 * len(x)


def test_classes_are_equally_frequent_and_no_text_is_fitted_and_scored():
    drawn = draw([str(i) for i in range(900)], [i % 9 for i in range(900)], list("abcdefghi"),
                 n_train=360, n_test=180, seed=0)  # fmt: skip
    train, test, label = balanced(drawn, 2, 0)
    assert (len(train), len(test)) == (80, 40)
    assert not set(train.tolist()) & set(test.tolist())
    assert int(label[train].sum()) == 40
    # Eight other classes share the other half.
    assert torch.bincount(drawn.group[train], minlength=9).tolist() == [5, 5, 40, *[5] * 6]


def test_too_few_texts_of_a_class_are_refused_by_name():
    with pytest.raises(UsageError, match="'b' has 3 texts"):
        draw(["x"] * 103, [0] * 100 + [1] * 3, ["a", "b"], n_train=100, n_test=40, seed=0)


def test_latents_set_to_zero_in_the_mean_row_are_those_set_to_zero_in_every_token():
    """Decoding token by token with the error kept, for signed codes and an SAE with a bias."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, D, generator=generator)
    sae = sae_with(torch.randn(20, D, generator=generator), torch.ones(D), signed=True)
    text = torch.arange(40) // 5
    codes = sae.encode(x)
    parts = TextMeans(8, 20)
    parts.add(text, x, None, codes)
    rows = parts.rows(torch.zeros(8, dtype=torch.long))
    label = torch.arange(8) % 2 == 0
    probe = MeanProbe(torch.randn(D, generator=generator), 0.3)
    removal = Removal(rows, sae)
    effects = removal.effects(probe, label, torch.ones(8, dtype=torch.bool))
    scores = removal.scores([probe], effects)
    for n, found in zip((0, *N_VALUES), scores, strict=True):
        removed = effects.sort(descending=True).indices[: min(n, int((effects > 0).sum()))]
        kept = codes.dense()
        kept[:, removed] = 0
        error = x - sae.decode(codes, x)
        changed = sae.decode(sparse(kept), x) + error
        mean = torch.stack([changed[text == i].mean(0) for i in range(8)]).double()
        wanted = mean @ probe.weights.double() + 0.3
        torch.testing.assert_close(found[:, 0], wanted, rtol=1e-4, atol=1e-4)


def test_an_oracle_with_a_latent_a_class_loses_that_class_alone():
    """P7.13: a class falls to chance without its latent, and TPP is this less what others lose.

    The last class has no latent. Without theirs, texts of a class look like it: a third of half of
    the texts on which its probe is scored, and one of three others' probes.
    """
    codes, group = classes(4)
    codes[:, 3] = 0
    rows, drawn = pooled(codes, group)
    found = tpp_of(rows, drawn, "wxyz", sae_with(torch.eye(D)), seed=0)
    assert set(found["clean"].values()) == {1.0}
    for name in "wxy":
        assert found["by_class"][name][0] == pytest.approx(0.5 - 1 / 18, abs=0.02)
    assert abs(found["by_class"]["z"][0]) < 0.02
    assert found["total"][0].low < found["total"][0].value < found["total"][0].high


def test_no_latent_has_an_effect_where_none_fires_and_order_does_not_matter():
    """P7.10 and P7.12: ablating nothing scores 0; permuted latents score the same."""
    codes, group = classes(4)
    rows, drawn = pooled(codes, group)
    silent = Rows(rows.x, sparse(torch.zeros_like(codes), ragged=True), rows.token, rows.fit)
    nothing = tpp_of(silent, drawn, "wxyz", sae_with(torch.eye(D)), seed=0)
    assert [one.value for one in nothing["total"]] == [0.0] * len(N_VALUES)
    order = torch.randperm(D, generator=torch.Generator().manual_seed(4))
    permuted = Rows(rows.x, sparse(codes[:, order], ragged=True), rows.token, rows.fit)
    plain, other = (
        tpp_of(each, drawn, "wxyz", sae_with(atoms), seed=0)
        for each, atoms in ((rows, torch.eye(D)), (permuted, torch.eye(D)[order]))
    )
    assert [one.value for one in plain["total"]] == [one.value for one in other["total"]]


def two_labels(*, apart: bool) -> tuple[Rows, Drawn]:
    """A latent for each class: 0 and 1 of a, 2 and 3 of b, which fire three times as much.

    If they are not apart, the latents of b also have what that of a had: their sum tells a, their
    difference b.
    """
    group = torch.arange(1600).repeat_interleave(4)[:1600] % 4
    a, b = (group >= 2).float(), (group % 2).float()
    codes = torch.zeros(len(group), D)
    noise = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0))
    codes[:, 4:] = noise[:, 4:] * (noise[:, 4:] < 0.3)
    for i, truth in enumerate((a, 1 - a)):
        codes[:, i] = (truth + 0.6 * (noise[:, i] - 0.5)).clamp_min(0)
    codes[:, 2], codes[:, 3] = 3 * b, 3 * (1 - b)
    if not apart:
        codes[:, 2:4] += codes[:, :1]
        codes[:, :2] = 0
    return pooled(codes, group)


def test_a_spurious_label_with_latents_of_its_own_is_removed():
    rows, drawn = two_labels(apart=True)
    found = scr_of(rows, drawn, ["a", "b"], sae_with(torch.eye(D)))
    assert found["a"].clean > 0.97
    assert found["a"].biased < 0.8
    first = found["a"].score[0]
    assert first.value > 0.9
    assert first.low is not None
    assert first.high is not None
    assert first.low <= first.value <= first.high
    assert found["b"].biased > found["a"].biased


def test_labels_in_one_latent_cannot_be_parted():
    rows, drawn = two_labels(apart=False)
    sae = sae_with(torch.eye(D))
    found = scr_of(rows, drawn, ["a", "b"], sae)
    assert found["a"].score[0].value < 0.2


def test_where_the_biased_probe_is_not_worse_nothing_is_scored():
    """Both labels are noise: the gap of two accuracies is near 0, and a ratio to it is anything."""
    generator = torch.Generator().manual_seed(3)
    group = torch.randint(4, (1600,), generator=generator)
    codes = torch.rand(1600, D, generator=generator)
    codes *= codes < 0.3
    found = scr_of(*pooled(codes, group), ["a", "b"], sae_with(torch.eye(D)))
    assert [one.score for one in found.values()] == [[], []]
    task = ScrTask({}, "", "a", found, Cost(0.0, 0, 0))
    told = [reason for _, reason in SCR.left_out(Scr({"noise": task}))]
    assert len(told) == 2
    assert "not clearly worse" in told[0]
    assert {cells[2:] for cells in SCR.lines(Scr({"noise": task}))} == {("-",) * 7}


def test_the_mean_of_a_text_is_over_its_tokens_and_ragged_codes_keep_their_order():
    parts = TextMeans(4, 5)
    dense = torch.tensor([[1.0, 0, 0, 0, 2], [3, 0, 0, 0, 0], [0, 0, 4, 0, 0], [0, 0, 0, 0, -6]])
    parts.add(torch.tensor([3, 3, 0, 2]), dense @ torch.ones(5, 2), None, sparse(dense))
    # The second text has no token that the SAE applies to.
    rows = parts.rows(torch.arange(4))
    assert rows.token.tolist() == [0, 2, 3]
    wanted = torch.tensor([[0, 0, 4.0, 0, 0], [0, 0, 0, 0, -6], [2, 0, 0, 0, 1]])
    torch.testing.assert_close(rows.codes.dense(), wanted)
    torch.testing.assert_close(rows.x, torch.tensor([[4.0, 4], [-6, -6], [3, 3]]))
    all_columns = columns(rows.codes, torch.arange(5))
    torch.testing.assert_close(all_columns.float(), wanted)
    difference, _ = code_moments(rows.codes, torch.tensor([[True], [False], [False]]), rows.fit)
    torch.testing.assert_close(difference[:, 0].float(), torch.tensor([-1.0, 0, 4, 0, 2.5]))


def test_intervals_are_those_of_the_books():
    # Wilson's interval of 8 in 10, and Student's of three values.
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    found = mean_over_tasks([0.4, 0.5, 0.6])
    assert found.low is not None
    assert found.value - found.low == pytest.approx(0.4303 / math.sqrt(3), rel=0.02)
    # A share is between 0 and 1, and so is its interval.
    assert mean_over_tasks([0.9, 0.95, 1.0]).high == 1
    assert interval(mean_over_tasks([0.9, 0.95, 1.0])).endswith(", 100.0]")
    assert mean_over_tasks([0.0, 0.0, 0.1]).low == 0
    assert mean_over_tasks([0.5]).low is None


def test_an_interval_is_printed_with_both_ends_where_they_are_not_equally_far():
    assert interval(FigureWithInterval(0.95, *wilson(0.95, 20))) == "95.0 [76.4, 99.1]"
    assert interval(FigureWithInterval(0.5, *wilson(0.5, 20))) == "50.0 ±20.1"
    assert interval(FigureWithInterval(0.5)) == "50.0"
