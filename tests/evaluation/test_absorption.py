"""Absorption: the fraction on rows computed by hand, and planted oracles and absorbers."""

import dataclasses

import pytest
import torch
from evaluation.cases import flipped, measured, permuted, reason, rows_of, sae_with, sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.absorption import (
    LabelInParts,
    absorbed,
    fit_task_probes,
    main_latents,
    measure_task,
)
from saelab.evaluation.absorption_tasks import (
    feature_absorption,
    first_letter_tasks,
    hierarchy_tasks,
    implied_tasks,
    occurrence,
)

W = torch.tensor([1.0, 0, 0, 0])
# Latent 0 is the label's own; 1 leans towards it (cosine 0.6), 2 less (0.08), 3 not at all, and 4
# points the other way.
ATOMS = torch.tensor(
    [
        [1.0, 0, 0, 0],
        [0.6, 0.8, 0, 0],
        [0.08, 0, 0.9968, 0],
        [0, 0, 0, 1.0],
        [-0.6, 0, 0.8, 0],
    ]
)


def measure(dense, present, *, main=(0,), atoms=ATOMS, ragged=False, b_dec=None):
    """Fractions and full absorption of rows whose activation has `present` along W."""
    x = torch.zeros(len(dense), 4)
    x[:, 0] = torch.as_tensor(present)
    codes = sparse(dense, ragged=ragged).rectangular()
    sae = sae_with(atoms, b_dec, signed=True)
    fraction, full = absorbed(codes, x, sae, direction=W, main=torch.tensor(main))
    return fraction.tolist(), full.tolist()


def test_rows_by_hand():
    dense = torch.tensor(
        [
            [10.0, 0, 0, 0, 0],  # its own latent says it all
            [4.0, 10, 0, 0, 0],  # 4 of 10 its own, 6 the other's
            [0, 15, 0, 0, 0],  # its own is silent, the other says 9 of 10
            [0, 5, 0, 0, 0],  # the other says 3 of 10: too little
            [0, 0, 100, 0, 0],  # says 8 of 10, but points elsewhere (cosine 0.08)
            [12.0, 10, 0, 0, 0],  # its own says more than there is
            [0, 0, 0, 5, 0],  # nobody says it
        ]
    )
    fraction, full = measure(dense, [10.0] * 7)
    assert fraction == pytest.approx([0, 0.6, 1, 0, 0, 0, 0])
    # Full absorption asks for a cosine of 0.025 alone, so the fifth row counts.
    assert full == [False, False, True, False, True, False, False]


def test_what_is_missing_caps_what_others_take():
    # P - M is 2, though the other says 6: a = 2 of 2 + 8.
    assert measure(torch.tensor([[8.0, 10, 0, 0, 0]]), [10.0])[0] == pytest.approx([0.2])


def test_only_the_three_largest_absorbers_count():
    atoms = torch.cat([torch.eye(4)[:1], torch.eye(4)[:1].expand(4, 4)])
    dense = torch.tensor([[1.0, 1, 1, 1, 1]])
    # T = 3, P - M = 9: a = 3 of 3 + 1; at P = 5 as well, with a fourth it would be 4 of 5.
    assert measure(dense, [5.0], atoms=atoms)[0] == pytest.approx([0.75])


def test_a_label_that_is_not_there_is_not_absorbed():
    fraction, full = measure(torch.tensor([[0, 5.0, 0, 0, 0]] * 2), [-1.0, 0])
    assert (fraction, full) == ([0, 0], [False, False])


def test_b_decs_share_is_nobodys():
    """Shifting the activations and b_dec together changes nothing."""
    dense = torch.tensor([[4.0, 10, 0, 0, 0]])
    shift = torch.tensor([7.0, 1, 0, 0])
    assert measure(dense, [17.0], b_dec=shift) == measure(dense, [10.0])


def test_silent_rows_are_not_absorbed():
    assert measure(torch.zeros(2, 5), [1.0, 2.0]) == ([0, 0], [False, False])


def test_a_negative_firing_of_an_opposite_row_counts_as_the_same_latent_turned_around():
    """Latent 4 firing at -10 writes 6 along w, as latent 1 at 10 does."""
    assert measure(torch.tensor([[4.0, 0, 0, 0, -10]]), [10.0])[0] == pytest.approx([0.6])
    # Its positive firings point away and absorb nothing.
    assert measure(torch.tensor([[4.0, 0, 0, 0, 10]]), [10.0])[0] == [0]
    # The other pole of the label's own latent does not speak for the label.
    assert measure(torch.tensor([[-1.0, 15, 0, 0, 0]]), [8.0])[0] == [1]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_fractions_are_shares_and_neither_order_nor_sign_matters(seed):
    draw = torch.Generator().manual_seed(seed)
    atoms = torch.randn(6, 4, generator=draw)
    dense = torch.randn(8, 6, generator=draw) * (torch.rand(8, 6, generator=draw) < 0.6)
    x = dense @ atoms + 0.3 * torch.randn(8, 4, generator=draw)
    codes = sparse(dense).rectangular()
    main = torch.tensor([1, 2 + 6])  # latent 1, and latent 2 where it is negative
    plain = absorbed(codes, x, sae_with(atoms), direction=W, main=main)
    assert ((plain[0] >= 0) & (plain[0] <= 1)).all()
    order = torch.randperm(6, generator=draw)
    place = order.argsort()
    moved = place[main % 6] + 6 * (main >= 6)
    other = absorbed(permuted(codes, order), x, sae_with(atoms[order]), direction=W, main=moved)
    turned = atoms * torch.tensor([1.0, -1, 1, 1, -1, 1])[:, None]
    swapped = flipped(codes, torch.tensor([1, 4]))
    # Turned around, latent 1 stands for the label where it is negative.
    third = absorbed(swapped, x, sae_with(turned), direction=W, main=torch.tensor([1 + 6, 2 + 6]))
    for found in (other, third):
        assert torch.allclose(found[0], plain[0], atol=1e-5)
        assert torch.equal(found[1], plain[1])


def text(n=2400, *, absorbs=0.0, signed=False, seed=0):
    """Rows with a general label along one atom and special ones along others.

    On rows of the first special label a share `absorbs` is written by the special latent alone,
    whose atom then contains the general direction.
    """
    draw = torch.Generator().manual_seed(seed)
    general = torch.rand(n, generator=draw) < 0.5
    first = general & (torch.rand(n, generator=draw) < 0.4)
    second = general & ~first
    silent = first & (torch.rand(n, generator=draw) < absorbs)
    size = 4.0
    dense = torch.zeros(n, 5)
    dense[:, 0] = size * (general & ~silent)
    dense[:, 1] = size * first
    dense[:, 2] = size * second
    dense[:, 3] = torch.rand(n, generator=draw)
    atoms = torch.eye(5, 8)
    x = dense @ atoms
    x[:, 0] = size * general  # the activations know it on every row
    x = x + 0.05 * torch.randn(n, 8, generator=draw)
    if absorbs:
        # The absorbing latent writes the general direction too, where it speaks for it.
        atoms = torch.cat([atoms, (torch.eye(8)[0] + torch.eye(8)[1])[None] / 2**0.5])
        dense = torch.cat([dense, (silent * size * 2**0.5)[:, None]], dim=1)
        dense[silent, 1] = 0
    if signed:
        dense[:, 0] *= -1
        atoms[0] *= -1
    names = ("noun_singular", "noun_plural", "other")
    labels = torch.stack([first, second, torch.rand(n, generator=draw) < 0.3], dim=1)
    rows = rows_of(x, sparse(dense), labels, names)
    rows = dataclasses.replace(rows, hierarchies={"noun": names[:2], "verb": ("verb_plural",)})
    return rows, sae_with(atoms, signed=signed)


@pytest.mark.parametrize("signed", [False, True])
def test_a_latent_that_is_the_labels_direction_absorbs_nothing(signed):
    """P7.11."""
    found = measured(feature_absorption(*text(signed=signed), str, seed=0))
    (noun,) = found.tasks
    assert (noun.kind, noun.name) == ("hierarchy", "noun")
    assert noun.main == [(0, -1 if signed else 1)]
    assert noun.main_f1 == 1
    assert noun.rate.fraction < 0.01
    assert noun.rate.full == 0
    assert set(noun.parts) == {"noun_singular", "noun_plural"}
    assert min(part.probe_f1 for part in noun.parts.values()) > 0.99
    assert found.means["hierarchy"].n_tasks == 1
    assert "fewer than two of its parts" in found.left_out["hierarchy: verb"]


def test_a_planted_absorber_is_found_where_it_absorbs():
    rows, sae = text(absorbs=0.5)
    found = measured(feature_absorption(rows, sae, str, seed=0))
    (noun,) = found.tasks
    assert noun.main[0] == (0, 1)
    special = {name: part.rate for name, part in noun.parts.items()}
    assert special["noun_plural"].full == 0
    assert special["noun_singular"].full == pytest.approx(0.5, abs=0.07)
    assert special["noun_singular"].fraction == pytest.approx(0.5, abs=0.07)
    total = sum(rate.n_rows for rate in special.values())
    assert noun.rate.n_rows == total
    expected = sum(rate.n_rows * rate.full for rate in special.values()) / total
    assert noun.rate.full == pytest.approx(expected)


def test_a_label_split_over_two_latents_has_both():
    draw = torch.Generator().manual_seed(0)
    label = torch.rand(1000, generator=draw) < 0.5
    half = torch.rand(1000, generator=draw) < 0.5
    dense = torch.zeros(1000, 4)
    dense[:, 1], dense[:, 2] = label & half, label & ~half
    dense[:, 3] = torch.rand(1000, generator=draw) < 0.5
    main, f1 = main_latents(sparse(dense), label, torch.arange(1000) % 2 == 0)
    assert set(main.tolist()) == {1, 2}
    assert f1 == 1


def test_a_latent_that_fires_where_the_label_is_not_does_not_stand_for_it():
    label = torch.arange(200) % 3 == 0
    dense = torch.stack([~label * 1.0, label * 1.0 * (torch.arange(200) % 2)], dim=1)
    main, _ = main_latents(sparse(dense), label, torch.arange(200) % 5 > 1)
    assert main.tolist() == [1]


def measure_alone(rows, sae, task):
    return measure_task(rows, sae, task, fit_task_probes(rows, [task])[0])


def test_a_poor_probe_leaves_its_task_out_with_its_f1():
    rows, sae = text()
    noise = torch.rand(len(rows), generator=torch.Generator().manual_seed(5)) < 0.2
    task = LabelInParts("hierarchy", "noise", noise, {"all": noise}, leave_out=False)
    result, left_out = measure_alone(rows, sae, task)
    assert result is None
    assert "is below 0.6" in left_out["all"]
    assert float(left_out["all"].split("F1 of ")[1].split()[0]) < 0.6


def test_a_probe_no_better_than_always_yes_leaves_its_task_out():
    rows, sae = text()
    noise = torch.rand(len(rows), generator=torch.Generator().manual_seed(5)) < 0.6
    task = LabelInParts("hierarchy", "noise", noise, {"all": noise}, leave_out=False)
    assert "hardly above chance" in measure_alone(rows, sae, task)[1]["all"]


def test_parts_too_rare_to_score_are_left_out_alone():
    rows, sae = text()
    rare = torch.zeros(len(rows), dtype=torch.bool)
    rare[:30] = True
    (task,) = measured(hierarchy_tasks(rows)[0])
    task = dataclasses.replace(task, parts={**task.parts, "rare": rare & task.label})
    result, left_out = measure_alone(rows, sae, task)
    assert set(result.parts) == {"noun_singular", "noun_plural"}
    assert list(left_out) == ["rare"]
    assert left_out["rare"].startswith("It is on fewer than 20 rows of a half; --n-sample")


def test_a_parts_own_direction_is_not_taken_for_the_labels():
    """Its atom is orthogonal to the direction that the other part and the label have."""
    rows, _ = text()
    (task,) = measured(hierarchy_tasks(rows)[0])
    for leave_out in (True, False):
        (probes,) = fit_task_probes(rows, [dataclasses.replace(task, leave_out=leave_out)])
        of_first = probes["noun_singular"].direction
        assert of_first.norm() == pytest.approx(1)
        assert abs(of_first[0]) > 0.5
        assert (abs(of_first[1]) < 0.05) == leave_out


def test_hierarchies_are_unions_of_the_labels_that_are_there():
    rows, _ = text()
    (task,) = measured(hierarchy_tasks(rows)[0])
    assert torch.equal(task.label, rows.labels[:, :2].any(1))
    other = dataclasses.replace(rows, label_names=("noun_singular", "b", "c"))
    tasks, missing = hierarchy_tasks(other)
    assert "No label of the text is a part of another" in reason(tasks)
    few = "The text labels fewer than two of its parts."
    assert missing == {"noun": few, "verb": few}


def labelled(names, columns):
    """Rows of which only the labels matter."""
    x = torch.zeros(len(columns), 1)
    return rows_of(x, sparse(x), columns, names)


def test_the_values_of_a_field_are_parts_of_having_any():
    value = torch.arange(300) % 3
    rows = labelled(("pos=noun", "pos=verb"), torch.stack([value == 0, value == 1], dim=1))
    (task,) = measured(hierarchy_tasks(rows)[0])
    assert (task.name, list(task.parts)) == ("pos", ["pos=noun", "pos=verb"])
    assert torch.equal(task.label, value < 2)
    whole = labelled(rows.label_names, torch.stack([value == 0, value > 0], dim=1))
    assert hierarchy_tasks(whole)[1] == {"pos": "It holds on every row."}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_implied_hierarchies_are_what_the_rows_say(seed):
    """Nested unions of random cells, against the definition row by row."""
    draw = torch.Generator().manual_seed(seed)
    cell = torch.randint(5, (400,), generator=draw)
    member = torch.rand(5, 6, generator=draw) < 0.5
    rows = labelled(tuple("abcdef"), member[cell])
    assert rows.labels is not None
    found = implied_tasks(rows.labels, rows.fit, rows.label_names)
    holds = [set(column.nonzero().flatten().tolist()) for column in rows.labels.T]
    common = [len(h & set(range(0, 400, 2))) >= 20 <= len(h & set(range(1, 400, 2))) for h in holds]
    # Of equal labels the first counts.
    first = [holds.index(h) == i for i, h in enumerate(holds)]
    inside = {
        (a, b)
        for a in range(6)
        for b in range(6)
        if common[a] and first[a] and first[b] and holds[a] < holds[b]
    }
    direct = {
        (a, b)
        for a, b in inside
        if not any((a, c) in inside and (c, b) in inside for c in range(6))
    }
    expected = {("abcdef"[a], "abcdef"[b]) for a, b in direct if enough(holds[b] - holds[a])}
    assert {(part, task.name) for task in found for part in task.parts} == expected


def enough(rows):
    return min(sum(row % 2 == half for row in rows) for half in (0, 1)) >= 20


def test_a_label_absorbed_by_one_that_implies_it_is_found_without_being_told():
    rows, sae = text(absorbs=0.5)
    general = rows.labels[:, :2].any(1)
    names = ("noun", "noun_singular", "noun_plural")
    labels = torch.stack([general, *rows.labels[:, :2].T], dim=1)
    rows = dataclasses.replace(rows, hierarchies={}, label_names=names, labels=labels)
    told = dataclasses.replace(rows, hierarchies={"noun": names[1:]})
    mine, theirs = (measured(feature_absorption(r, sae, None, seed=0)) for r in (rows, told))
    assert mine.tasks == theirs.tasks
    assert mine.tasks[0].rate.full > 0.1
    assert mine.left_out["first letter"] == "Rows without tokens have no words."


WORDS = [f"{letter}{chr(97 + i)}" for letter in "abk" for i in range(20)] + ["7th", "x", "."]


def spelt_rows(n=3000, *, readable=True):
    """Rows whose activation says the word's first letter, or says nothing."""
    draw = torch.Generator().manual_seed(0)
    token = torch.randint(len(WORDS), (n,), generator=draw)
    token[: n // 2] = 0  # one word far more often than the others
    first = torch.tensor([ord(word[0]) % 8 for word in WORDS])
    x = 0.1 * torch.randn(n, 8, generator=draw)
    if readable:
        x[torch.arange(n), first[token]] += 1
    return rows_of(x, sparse(x.clamp_min(0.05) - 0.05), token=token), sae_with(torch.eye(8))


def test_first_letters_are_fitted_and_scored_on_different_words():
    rows, _ = spelt_rows()
    here, found, _ = first_letter_tasks(rows, lambda i: f" {WORDS[i]}", seed=0)
    tasks = measured(found)
    assert {task.name for task in tasks} == {"a", "b", "k"}
    fitted, unseen = set(here.token[here.fit].tolist()), set(here.token[~here.fit].tolist())
    assert not fitted & unseen
    counts = torch.bincount(here.token)
    assert int(counts.max()) == 20
    # What is no word of two letters or more is left out.
    assert int(here.token.max()) < 60
    for task in tasks:
        starts = torch.tensor([WORDS[i][0] == task.name for i in here.token.tolist()])
        assert torch.equal(task.label, starts)


def test_letters_that_can_be_read_are_measured_and_others_left_out():
    def whole(readable):
        rows, sae = spelt_rows(readable=readable)
        return feature_absorption(rows, sae, WORDS.__getitem__, seed=0)

    found = measured(whole(True))
    assert found.tasks
    assert all(task.kind == "first letter" for task in found.tasks)
    assert all(task.parts[""].probe_f1 > 0.9 for task in found.tasks)
    assert all(task.rate.full < 0.1 for task in found.tasks)
    assert found.left_out["hierarchy"] == "The text has no ground-truth labels."
    assert found.means["first letter"].n_tasks == len(found.tasks)
    assert found.left_out["first letter: z"] == "It begins fewer than 5 words of a half."
    told = {name.partition(": ")[2] for name in found.left_out} | {t.name for t in found.tasks}
    assert set("abcdefghijklmnopqrstuvwxyz") <= told
    nothing = measured(whole(False))
    assert (nothing.tasks, nothing.means) == ([], {})
    assert "The probe's F1 of" in nothing.left_out["first letter: a"]


def test_a_text_without_labels_or_words_is_skipped():
    rows, sae = spelt_rows()
    found = reason(feature_absorption(rows, sae, lambda _: "7", seed=0))
    assert "no ground-truth labels" in found
    assert "No letter begins 5 words" in found


@settings(max_examples=30)
@given(group=st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_occurrences_count_up_within_their_group(group):
    expected = [group[:i].count(g) for i, g in enumerate(group)]
    assert occurrence(torch.tensor(group)).tolist() == expected
