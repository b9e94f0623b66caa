"""The frozen model is the plain model on its prompt, and refuses what it cannot hold exactly."""

import pytest
import torch
from analysis.circuits.cases import hosts, prompt_of
from analysis.circuits.replay import Replay
from analysis.steering.cases import random_sae

from saelab.analysis.circuits.frozen import freeze
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.sites import Place


def test_with_the_errors_it_is_the_plain_model(frozen, lm64):
    replay = Replay(frozen, hold=False)
    torch.testing.assert_close(replay.final, Replay(frozen).final, rtol=0, atol=1e-11)
    exact = 1e-10 if frozen.weights.W_pos is not None else 1e-4
    plain = lm64.logits(prompt_of(lm64)[None])[0]
    torch.testing.assert_close(replay.logits(), plain, rtol=exact, atol=exact)
    torch.testing.assert_close(replay.read, frozen.values, rtol=0, atol=1e-11)


def test_dictionaries_stand_in_the_order_of_the_computation(frozen):
    places = [active.place for active in frozen.actives]
    assert [place.depth for place in places] == sorted(place.depth for place in places)
    assert places[0] == Place(0, "heads")
    assert places[-1] == Place(2, "mlp")


def test_latents_are_found_by_dictionary_number_and_position(frozen):
    number, entry = 2, 5
    codes = frozen.actives[number].codes
    found = frozen.latent_index(number, int(codes.latent[entry]), int(codes.row[entry]))
    assert found == frozen.spans[number].start + entry
    assert frozen.values[found] == codes.values[entry]
    assert int(frozen.owner[found]) == number


@pytest.mark.parametrize(
    ("site", "target", "message"),
    [
        ("blocks.0.hook_mlp_out", None, "circuits take SAEs at attn.hook_z"),
        ("blocks.0.ln2.hook_out", "blocks.1.hook_mlp_out", "and writes blocks.1.hook_mlp_out"),
        ("blocks.3.attn.hook_z", None, "but the model has layers 0 to 2"),
        ("blocks.3.hook_resid_post", None, "but the model has layers 0 to 2"),
    ],
)
def test_sites_without_an_exact_rule_are_refused(gpt64, site, target, message):
    with pytest.raises(UsageError, match=message):
        freeze(gpt64, [Host.at(gpt64, random_sae(), site, target)], prompt_of(gpt64))


def test_two_saes_at_one_place_are_refused(gpt64):
    pair = [
        Host(gpt64, random_sae(), "blocks.0.hook_resid_post", "blocks.0.hook_resid_post", "a"),
        Host(gpt64, random_sae(), "blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre", "b"),
    ]
    with pytest.raises(UsageError, match="a and b stand at the same place"):
        freeze(gpt64, pair, prompt_of(gpt64))


def test_two_saes_of_one_name_are_refused(gpt64):
    pair = [
        Host(gpt64, random_sae(), site, site, "run")
        for site in ("blocks.0.attn.hook_z", "blocks.1.attn.hook_z")
    ]
    with pytest.raises(UsageError, match="same name"):
        freeze(gpt64, pair, prompt_of(gpt64))


def test_an_sae_of_another_width_is_refused(gpt64):
    wide = Host.at(gpt64, random_sae(d_in=20), "blocks.1.attn.hook_z")
    with pytest.raises(UsageError, match=r"rows of width 20, but blocks.1.attn.hook_z has 16"):
        freeze(gpt64, [wide], prompt_of(gpt64))


def test_a_prompt_without_saes_has_no_latents(gpt64):
    frozen = freeze(gpt64, hosts(gpt64, {}), prompt_of(gpt64))
    assert len(frozen.values) == 0
    assert frozen.n_leaves == 8 * 5 + 3 * 4 + 2
