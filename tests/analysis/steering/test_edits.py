"""Every change of latents writes exactly what it says, where it says, and nothing else."""

from dataclasses import replace

import pytest
import torch
from analysis.steering.cases import LAST, MIDDLE, PROMPT, random_sae, steerable
from hypothesis import given
from hypothesis import strategies as st

from saelab.analysis.steering.edits import (
    a_max,
    codes_at,
    direction_edit,
    latent_edits,
    with_maxima,
)
from saelab.analysis.steering.interventions import (
    Intervention,
    Op,
    Unit,
    position_mask,
)
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.prompt import encode_prompt
from saelab.types import SparseCodes


@pytest.fixture(params=["topk", "abs-topk", "matching-pursuit", "jumprelu"])
def model(request, perturbed_lm) -> Host:
    return steerable(perturbed_lm, request.param)


@pytest.fixture
def tokens(perturbed_lm):
    return encode_prompt(perturbed_lm, PROMPT)[None]


def edit_of(model: Host, changes, mask):
    """The one edit of an SAE that writes where it reads."""
    (edit,) = latent_edits(model, changes, mask).values()
    return edit


def run(model: Host, tokens, change: Intervention):
    """The site before and after, the codes before, and where it was changed."""
    mask = position_mask(model.lm, tokens, change.positions, tokens.shape[1])
    plain = model.lm.run(tokens, hooks=[model.writes]).activations[model.writes]
    edits = latent_edits(model, [change], mask)
    done = model.lm.run(tokens, edits=edits, hooks=[model.writes]).activations[model.writes]
    return plain, done, model.sae.encode(plain[mask]), mask


@pytest.mark.parametrize("strength", [4.0, -4.0])
def test_adding_with_the_error_kept_is_x_plus_strength_a_max_and_the_decoder_row(
    model, tokens, strength
):
    x, steered, codes, mask = run(model, tokens, Intervention(latents=(5,), amount=strength))
    assert int(mask.sum()) == 1
    scale = codes.dense().abs().max()
    expected = x[0, -1] + strength * scale * model.sae.W_dec[5]
    assert torch.allclose(steered[0, -1], expected, atol=1e-5)


def test_dropping_the_error_decodes_the_changed_codes(model, tokens):
    change = Intervention(latents=(5, 9), amount=2.0, error="drop")
    _, steered, codes, _ = run(model, tokens, change)
    dense = codes.dense()
    dense[:, [5, 9]] += 2 * dense.abs().max()
    expected = dense @ model.sae.W_dec + model.sae.b_dec
    assert torch.allclose(steered[:, -1], expected, atol=1e-5)


def test_clamp_scale_and_ablate_set_the_code_they_name(model, tokens):
    _, _, codes, _ = run(model, tokens, Intervention(latents=(0,)))
    latent = int(codes.indices[0, codes.values[0].abs().argmax()])
    here = float(codes.dense()[0, latent])
    asked: list[tuple[Op, float, float]] = [
        ("clamp", 7.0, 7.0),
        ("scale", 3.0, 3 * here),
        ("ablate", 99.0, 0.0),
    ]
    for op, amount, value in asked:
        change = Intervention(
            latents=(latent,), op=op, amount=amount, unit="absolute", error="drop"
        )
        _, steered, codes, _ = run(model, tokens, change)
        dense = codes.dense()
        dense[0, latent] = value
        expected = dense @ model.sae.W_dec + model.sae.b_dec
        assert torch.allclose(steered[:, -1], expected, atol=1e-5), op


def test_the_units_are_the_position_s_maximum_the_latent_s_own_and_one(model, tokens):
    codes = run(model, tokens, Intervention(latents=(0,)))[2]
    assert model.maxima is not None
    units: dict[Unit, float] = {
        "a_max": float(a_max(codes)),
        "latent_max": float(model.maxima[7]),
        "absolute": 1.0,
    }
    for unit, size in units.items():
        x, steered, _, _ = run(model, tokens, Intervention(latents=(7,), amount=2.0, unit=unit))
        moved = (steered - x)[0, -1] @ model.sae.W_dec[7]
        assert float(moved) == pytest.approx(2 * size, rel=1e-4)


def test_strength_zero_leaves_activations_and_logits_bit_for_bit(model, tokens):
    nothing: list[tuple[Op, float]] = [("add", 0.0), ("scale", 1.0)]
    for op, amount in nothing:
        change = Intervention(latents=(3, 4), op=op, amount=amount, positions="all")
        x, steered, _, mask = run(model, tokens, change)
        assert torch.equal(x, steered)
        edits = latent_edits(model, [change], mask)
        assert torch.equal(model.lm.logits(tokens), model.lm.logits(tokens, edits))


def test_ablating_a_latent_that_does_not_fire_changes_nothing(model, tokens):
    codes = run(model, tokens, Intervention(latents=(0,)))[2]
    silent = int((codes.dense()[0] == 0).nonzero()[0])
    x, steered, _, _ = run(model, tokens, Intervention(latents=(silent,), op="ablate"))
    assert torch.equal(x, steered)


def test_ablating_a_latent_that_fires_takes_its_part_away(model, tokens):
    codes = run(model, tokens, Intervention(latents=(0,)))[2]
    latent = int(codes.indices[0, codes.values[0].abs().argmax()])
    value = codes.dense()[0, latent]
    x, steered, _, _ = run(model, tokens, Intervention(latents=(latent,), op="ablate"))
    assert torch.allclose(steered[0, -1], x[0, -1] - value * model.sae.W_dec[latent], atol=1e-5)
    assert not torch.equal(x, steered)


def test_both_poles_of_a_signed_latent_can_be_set(perturbed_lm, tokens):
    model = steerable(perturbed_lm, "abs-topk")
    x, up, codes, _ = run(model, tokens, Intervention(latents=(2,), op="clamp", amount=3))
    _, down, _, _ = run(model, tokens, Intervention(latents=(2,), op="clamp", amount=-3))
    scale, here = float(a_max(codes)), float(codes.dense()[0, 2])
    along = [float((moved - x)[0, -1] @ model.sae.W_dec[2]) for moved in (up, down)]
    assert along == pytest.approx([3 * scale - here, -3 * scale - here], rel=1e-4)


def test_a_change_per_context_equals_one_context_at_a_time(model, tokens):
    changes = [Intervention(latents=(i,), amount=i - 3.0, positions="all") for i in range(6)]
    batch = tokens.expand(len(changes), -1)
    mask = position_mask(model.lm, batch, "all", tokens.shape[1])
    together = model.lm.logits(batch, latent_edits(model, changes, mask))
    for row, change in enumerate(changes):
        alone = model.lm.logits(tokens, latent_edits(model, [change], mask[:1]))
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_other_directions_are_added_as_latents_that_write_them_would_be(perturbed_lm, tokens):
    model = steerable(perturbed_lm)
    atoms = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    mask = position_mask(model.lm, tokens, "last", tokens.shape[1])
    changes = [Intervention(latents=(2,), amount=4.0)]
    (edit,) = latent_edits(model, changes, mask, atoms).values()
    # TopK codes do not depend on the decoder.
    other = steerable(perturbed_lm)
    with torch.no_grad():
        other.sae.W_dec[2] = atoms[2]
    expected = model.lm.logits(tokens, {other.writes: edit_of(other, changes, mask)})
    assert torch.equal(model.lm.logits(tokens, {model.writes: edit}), expected)
    assert not torch.equal(model.lm.logits(tokens, latent_edits(model, changes, mask)), expected)


def test_pushing_along_a_decoder_row_equals_adding_the_latent(model, tokens):
    mask = position_mask(model.lm, tokens, "all", tokens.shape[1])
    row = model.sae.W_dec[4]
    pushed = direction_edit(model, 3 * row, torch.tensor([2.5]), mask)
    added = edit_of(model, [Intervention(latents=(4,), amount=2.5, unit="absolute")], mask)
    logits = [model.lm.logits(tokens, {model.writes: edit}) for edit in (pushed, added)]
    assert torch.allclose(logits[0], logits[1], atol=1e-4)


def test_positions_are_all_but_special_the_last_or_from_one_on(perturbed_lm):
    tokens = torch.tensor([[0, 5, 6, 0, 7]])
    masks = {
        positions: position_mask(perturbed_lm, tokens, positions, 4)[0].tolist()
        for positions in ("all", "last", 2)
    }
    assert masks == {
        "all": [False, True, True, False, True],
        # The fourth token is special; the fifth was generated behind the prompt.
        "last": [False, False, False, False, True],
        2: [False, False, True, False, True],
    }


def test_an_edit_whose_positions_do_not_exist_yet_changes_nothing(model, tokens):
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    edit = edit_of(model, [Intervention(latents=(1,), amount=9.0)], mask)
    value = torch.randn(1, tokens.shape[1], 16)
    assert torch.equal(edit(value), value)


def test_heads_are_steered_where_they_are_concatenated(perturbed_lm, tokens):
    model = steerable(perturbed_lm, site="blocks.1.attn.hook_z")
    x, steered, codes, _ = run(model, tokens, Intervention(latents=(6,), amount=3.0))
    expected = x[0, -1] + 3 * a_max(codes)[0] * model.sae.W_dec[6]
    assert torch.allclose(steered[0, -1], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_sum_is_rounded_once_to_the_model_s_own_number_type(perturbed_lm, dtype):
    model = steerable(perturbed_lm)
    value = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.tensor([[False, True, True]])
    edit = edit_of(model, [Intervention(latents=(1,), amount=0.37, unit="absolute")], mask)
    exact = value.double() + mask[..., None] * (0.37 * model.sae.W_dec[1].double())
    found = edit(value)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), exact.to(dtype).double(), rtol=1e-6, atol=1e-7)


def test_where_nothing_fires_nothing_is_added_and_dropping_the_error_leaves_the_bias(
    perturbed_lm, tokens
):
    model = steerable(perturbed_lm, "jumprelu")
    with torch.no_grad():
        model.sae.get_parameter("b_enc").fill_(-1e4)
    for change in (Intervention(latents=(2,), amount=5.0), Intervention(latents=(2,), op="ablate")):
        x, steered, _, _ = run(model, tokens, change)
        assert torch.equal(x, steered)
        bare = change.model_copy(update={"error": "drop"})
        assert torch.equal(run(model, tokens, bare)[1][0, -1], model.sae.b_dec)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_codes_at_are_the_entries_of_the_dense_codes(rows, k, seed):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(8, generator=generator)[:k] for _ in range(rows)])
    codes = SparseCodes(torch.randn(rows, k, generator=generator), indices, 8)
    latents = torch.randint(8, (rows, 3), generator=generator)
    assert torch.equal(codes_at(codes, latents), codes.dense().gather(1, latents))
    assert torch.equal(a_max(codes), codes.dense().abs().amax(dim=1))


def test_a_run_brings_its_maxima_where_features_were_collected(featured_run, random_lm):
    from saelab.analysis.records import Features

    model = with_maxima(Host.of_run(featured_run, random_lm))
    assert model.maxima is not None
    assert model.maxima.tolist() == pytest.approx([f.max for f in Features(featured_run.path)])


def test_mistakes_are_refused_in_one_sentence(perturbed_lm, tokens):
    sae = random_sae()
    bare = Host.at(perturbed_lm, sae, MIDDLE)
    silent = replace(bare, maxima=torch.zeros(24))
    mask = tokens > 2

    def edit(model: Host, *changes: Intervention):
        return lambda: edit_of(model, changes, mask)

    own = Intervention(latents=(2,), unit="latent_max")
    refused = {
        "no latent 24; the SAE has 0 to 23": edit(bare, Intervention(latents=(24,))),
        "run `saelab features` first": edit(bare, own),
        "Latent 2 never fired": edit(silent, own),
        "names a latent twice": edit(bare, Intervention(latents=(2, 2))),
        "2 kinds cannot share a batch": edit(bare, own, Intervention(latents=(2,))),
        "Position 6 lies behind the prompt": lambda: position_mask(perturbed_lm, tokens, 6, 6),
        "is empty": lambda: encode_prompt(perturbed_lm, " "),
        "does not know “elephant”": lambda: encode_prompt(perturbed_lm, "the elephant"),
        "1 more than the 32": lambda: encode_prompt(perturbed_lm, "the " * 32),
    }
    for message, act in refused.items():
        with pytest.raises(UsageError, match=message):
            act()


def test_a_site_whose_value_the_skip_connection_goes_past_is_refused(perturbed_lm, tokens):
    model = Host.at(perturbed_lm, random_sae(), "blocks.0.hook_resid_mid")
    edits = latent_edits(model, [Intervention(latents=(1,), amount=1.0)], tokens > 2)
    with pytest.raises(UsageError, match="skip connection"):
        model.lm.logits(tokens, edits)


def test_the_last_layer_far_out_says_what_the_lens_promises(perturbed_lm, tokens):
    from saelab.analysis.steering.lens import logit_lens

    model = steerable(perturbed_lm, site=LAST)
    change = Intervention(latents=(8,), amount=1e6)
    mask = position_mask(perturbed_lm, tokens, "last", tokens.shape[1])
    far = perturbed_lm.logits(tokens, {LAST: edit_of(model, [change], mask)})[0, -1]
    # Far out the norm's epsilon vanishes, so the row is taken at a length where it does too.
    assert torch.allclose(
        far, logit_lens(perturbed_lm, LAST, 1e3 * model.sae.W_dec[8:9])[0], atol=1e-3
    )
