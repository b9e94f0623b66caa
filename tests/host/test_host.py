"""An SAE in its model says where it reads and where it writes, and acts where it was trained."""

from dataclasses import replace

import pytest
import torch
from analysis.steering.cases import CONFIGS, random_sae

from saelab.config import UsageError
from saelab.host.host import Host
from saelab.sites import Place
from saelab.training.domain import Domain

SITE = "blocks.1.hook_resid_pre"


def test_a_run_reads_and_writes_where_it_was_trained(small_run, random_lm):
    host = Host.of_run(small_run, random_lm)
    assert host.reads == host.writes == small_run.config.site
    assert host.sites == [small_run.config.site]
    assert not host.is_transcoder
    assert host.place == Place(1, "residual")
    assert (host.name, host.domain, host.run) == (small_run.name, small_run.domain, small_run)
    own = host.sae
    assert Host.of_run(small_run, random_lm, own).sae is own


def test_a_transcoder_writes_elsewhere_than_it_reads(mlp_run, random_lm):
    host = Host.of_run(mlp_run, random_lm)
    assert host.sites == [host.reads, host.writes]
    assert (host.reads, host.writes) == ("blocks.1.ln2.hook_out", "blocks.1.mlp.hook_post")
    assert host.is_transcoder
    widths = [random_lm.width(site) for site in host.sites]
    assert widths == [host.sae.d_in, host.sae.d_out]
    assert widths[0] != widths[1]


def test_another_model_than_the_runs_is_refused(small_run, tiny_lm):
    with pytest.raises(UsageError, match=r"was trained on .* not on tiny"):
        Host.of_run(small_run, tiny_lm)


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_codes_of_whole_contexts_are_those_of_each_row_where_it_applies(random_lm, variant, share):
    sae = random_sae(variant)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 16, generator=generator)
    tokens = torch.randint(3, 9, (2, 5), generator=generator)
    limit = float(x.norm(dim=-1).flatten().quantile(share)) - (share == 0)
    host = replace(Host.at(random_lm, sae, SITE), domain=Domain(max_norm=limit))
    codes, applies = host.encode(tokens, x, x)
    assert torch.equal(applies, x.norm(dim=-1) <= limit)
    assert int(applies.sum()) == round(share * 10)
    each = torch.cat([sae.encode(row[None]).dense() for row in x.flatten(0, 1)])
    expected = each * applies.flatten()[:, None]
    torch.testing.assert_close(codes.dense(), expected, rtol=1e-5, atol=1e-6)


def test_circuits_place_it_by_both_sites_or_say_in_one_sentence_why_not(random_lm):
    def host(reads, writes=None):
        return Host.at(random_lm, random_sae(), reads, writes)

    assert host(SITE).place == Place(1, "residual")
    assert host("blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out").place == Place(1, "mlp")
    with pytest.raises(UsageError, match=r"^hook_embed reads hook_embed; circuits take SAEs at"):
        _ = host("hook_embed").place
    with pytest.raises(UsageError, match=r"reads blocks.1.attn.hook_z and writes hook_embed; "):
        _ = host("blocks.1.attn.hook_z", "hook_embed").place
