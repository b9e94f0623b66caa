"""A hook name is taken apart into its layer and its part, and put together again as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.config import UsageError
from saelab.sites import Place, Site, outputs_of, place_of

NO_HOOKS = [
    *("", "layer7", "blocks.2", "blocks.x.attn.hook_z", "blocks.02.hook_in", "blocks.-1.hook_in"),
    *("blocks.٣.hook_in", "blocks.2.hook_resid_post\n", "blocks.2..hook_z", "blocks.2.attn.z"),
    *(f"blocks.{'9' * 5000}.hook_in", "blocks.blocks.2.hook_in", "model.layers.2"),
]


@given(
    st.none() | st.integers(0, 999_999),
    st.from_regex(r"([a-z][a-z0-9_]{0,9}\.){0,3}hook_[a-z0-9_]{1,9}", fullmatch=True),
)
def test_a_name_that_is_put_together_is_taken_apart_into_the_same(layer, part):
    if part.startswith("blocks."):
        return
    site = Site(layer, part)
    assert Site.of(site.hook) == site


@pytest.mark.parametrize("name", NO_HOOKS)
def test_what_is_no_hook_is_told_in_one_sentence(name):
    assert Site.find(name) is None
    assert place_of(name, name) is None
    with pytest.raises(UsageError, match=r"is not the name of a hook; .* for example\.$") as told:
        Site.of(name)
    assert "\n" not in str(told.value)


def test_places_are_in_the_order_of_the_computation():
    hooks = [
        *("blocks.0.hook_resid_pre", "blocks.0.attn.hook_z"),
        *("blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"),
        *("blocks.0.hook_resid_post", "blocks.1.attn.hook_z"),
        *("blocks.1.attn.hook_out", "blocks.1.hook_mlp_out"),
    ]
    found = []
    for hook in hooks:
        reads = hook.replace("hook_mlp_out", "ln2.hook_out")
        place = place_of(reads, hook)
        assert place is not None
        found.append(place.depth)
    assert found == list(range(8))
    assert place_of("blocks.0.hook_resid_post", "blocks.0.hook_resid_post") == place_of(
        "blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre"
    )
    assert place_of("blocks.3.mlp.hook_in", "blocks.3.mlp.hook_out") == Place(3, "mlp")


@pytest.mark.parametrize(
    ("reads", "writes"),
    [
        ("blocks.1.ln2.hook_out", "blocks.2.hook_mlp_out"),
        ("blocks.1.ln2.hook_out", "blocks.1.ln2.hook_out"),
        ("blocks.1.attn.hook_z", "blocks.1.hook_attn_out"),
        ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_mid"),
        ("hook_embed", "hook_embed"),
    ],
)
def test_what_circuits_have_no_rule_for_has_no_place(reads, writes):
    assert place_of(reads, writes) is None


@pytest.mark.parametrize(
    ("hook", "first"),
    [
        *(("hook_embed", 0), ("blocks.2.hook_resid_pre", 2), ("blocks.2.attn.hook_z", 2)),
        *(("blocks.2.hook_resid_post", 3), ("blocks.2.hook_out", 3), ("unembed.hook_in", None)),
    ],
)
def test_the_layers_behind_a_site_begin_where_its_own_block_has_ended(hook, first):
    assert Site.of(hook).next_layer == first


def test_every_hook_of_a_model_is_read_back_and_the_sums_are_those_of_its_blocks(random_lm):
    sites = [Site.of(hook) for hook in random_lm.hooks()]
    assert [site.hook for site in sites] == random_lm.hooks()
    n_layers = random_lm.info.n_layers
    assert {site.layer for site in sites} == {None, *range(n_layers)}
    added = {output.added for layer in range(n_layers) for output in outputs_of(layer)}
    assert {site.hook for site in sites if site.adds} == added
    for site in sites:
        # What writes to the stream through an output is of that output's layer.
        assert site.output is None or Site.of(site.output.added).layer == site.layer
