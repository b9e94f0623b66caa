"""Gradients and contributions: exact sums, and the same by running the frozen model forward."""

from dataclasses import replace

import pytest
import torch
from analysis.circuits.cases import frozen_of, one_hot, prompt_of
from analysis.circuits.replay import Replay

from saelab.analysis.circuits.backward_walk import stop, through, walk_back
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.readings import latent_reading, logit_reading
from saelab.lm.internals import model_weights
from saelab.lm.record import record_forward

CLOSE = {"rtol": 0, "atol": 1e-9}


def rows_of(frozen: Frozen, gate):
    """Every latent's row: gradients, leaves, values."""
    found = [
        walk_back(frozen, latent_reading(frozen, n, torch.arange(len(a.codes))), gate)
        for n, a in enumerate(frozen.actives)
    ]
    return torch.cat([f.gradient for f in found]), torch.cat([f.leaves for f in found])


def test_leaves_sum_to_the_logit_and_to_every_latent(frozen, lm64):
    # P3.1
    for token in (3, 7):
        found = walk_back(frozen, logit_reading(frozen, 6, one_hot(lm64, token)))
        logit = frozen.record.logits(frozen.weights, torch.tensor([token]))[0, 6, 0]
        torch.testing.assert_close(found.leaves.sum(), logit, **CLOSE)
    _, leaves = rows_of(frozen, through)
    torch.testing.assert_close(leaves.sum(1), frozen.values, **CLOSE)


def test_direct_effects_and_leaves_sum_to_every_value(frozen):
    # P7.7
    gradient, leaves = rows_of(frozen, stop)
    torch.testing.assert_close(gradient @ frozen.values + leaves.sum(1), frozen.values, **CLOSE)


@pytest.mark.parametrize(
    "kind",
    [
        "embedding",
        "error",
        "b_dec",
        "encoder",
        "bias ln1",
        "bias b_V",
        "bias b_O",
        "bias ln_final",
        "mlp",
    ],
)
def test_with_one_kind_of_leaf_dropped_the_sum_fails(frozen, lm64, kind):
    found = walk_back(frozen, logit_reading(frozen, 7, one_hot(lm64, 3)))
    dropped = sum(
        float(found.leaves[0, span].sum().abs())
        for leaf, span in frozen.leaves.items()
        if leaf.startswith(kind)
    )
    gpt_only = kind in ("bias ln1", "bias b_V", "bias b_O", "bias ln_final")
    assert (dropped > 1e-4) == (frozen.weights.W_pos is not None or not gpt_only)


def test_with_another_prompts_patterns_the_sum_fails(gpt64):
    # The negative control of freezing: a pattern or scale that is not the prompt's own.
    frozen = frozen_of(gpt64)
    other = record_forward(gpt64, model_weights(gpt64), prompt_of(gpt64).flip(0)[None])
    for field in ("pattern", "ln1_scale"):
        layers = tuple(
            replace(mine, **{field: getattr(theirs, field)})
            for mine, theirs in zip(frozen.record.layers, other.layers, strict=True)
        )
        wrong = Frozen(frozen.weights, replace(frozen.record, layers=layers), frozen.actives)
        found = walk_back(wrong, logit_reading(wrong, 7, one_hot(gpt64, 3)))
        logit = frozen.record.logits(frozen.weights, torch.tensor([3]))[0, 7, 0]
        assert abs(float(found.leaves.sum() - logit)) > 1e-3


def test_a_latents_column_is_what_moving_it_changes(frozen, lm64):
    # P3.4 and P7.6: everything else held.
    gradient, _ = rows_of(frozen, stop)
    on_logit = walk_back(frozen, logit_reading(frozen, 7, one_hot(lm64, 3)), stop).gradient[0]
    plain = Replay(frozen)
    for index in range(0, len(frozen.values), 17):
        moved = Replay(frozen, {index: 0.37})
        torch.testing.assert_close((moved.read - plain.read) / 0.37, gradient[:, index], **CLOSE)
        change = (moved.logits() - plain.logits())[7, 3] / 0.37
        torch.testing.assert_close(change, on_logit[index], **CLOSE)


def test_a_total_gradient_is_what_moving_the_latent_changes_downstream(frozen, lm64):
    total = walk_back(frozen, logit_reading(frozen, 7, one_hot(lm64, 3))).gradient[0]
    plain = Replay(frozen, hold=False)
    for index in range(0, len(frozen.values), 17):
        moved = Replay(frozen, {index: 0.37}, hold=False)
        change = (moved.logits() - plain.logits())[7, 3] / 0.37
        torch.testing.assert_close(change, total[index], **CLOSE)


def test_effects_only_go_down_in_depth_and_back_in_position(frozen):
    # P3.5
    gradient, _ = rows_of(frozen, stop)
    depth = torch.tensor([a.place.depth for a in frozen.actives])[frozen.owner]
    position = torch.cat([a.codes.row for a in frozen.actives])
    backwards = (depth[:, None] <= depth[None]) | (position[:, None] < position[None])
    assert not gradient[backwards].any()
    assert gradient.any()


def test_several_logits_are_read_at_once(frozen, lm64):
    both = one_hot(lm64, 3) - 2 * one_hot(lm64, 5)
    found = walk_back(frozen, logit_reading(frozen, 4, both)).leaves
    parts = [walk_back(frozen, logit_reading(frozen, 4, one_hot(lm64, t))).leaves for t in (3, 5)]
    torch.testing.assert_close(found, parts[0] - 2 * parts[1], **CLOSE)


@pytest.mark.parametrize("gate", [stop, through])
def test_one_walk_serves_readings_at_several_places(frozen, lm64, gate):
    readings = [logit_reading(frozen, 7, one_hot(lm64, 3))]
    for number in reversed(range(len(frozen.actives))):
        entries = torch.arange(0, len(frozen.actives[number].codes), 9)
        readings.append(latent_reading(frozen, number, entries))
    together = walk_back(frozen, readings, gate)
    alone = [walk_back(frozen, reading, gate) for reading in readings]
    torch.testing.assert_close(together.gradient, torch.cat([f.gradient for f in alone]), **CLOSE)
    torch.testing.assert_close(together.leaves, torch.cat([f.leaves for f in alone]), **CLOSE)
