"""A joint site's direct path: what its sites add to the stream adds up."""

import pytest
import torch

from saelab.lm.joint import JointModel

OUTPUTS = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z")
STREAM = "blocks.0.hook_resid_post+blocks.1.hook_resid_post"


def test_what_several_outputs_write_is_their_sum_in_the_stream(random_lm):
    factors = (2.0, 0.5, 4.0)
    joint = JointModel(random_lm, "+".join(OUTPUTS), factors)
    width = random_lm.info.d_model
    rows = torch.randn(5, joint.width(joint.site), generator=torch.Generator().manual_seed(0))
    first, second, heads = rows.split([width, width, random_lm.width(OUTPUTS[2])], dim=1)
    W_O = random_lm.residual_writes(OUTPUTS[2], torch.eye(heads.shape[1]))
    written = first / 2 + second / 0.5 + heads @ W_O / 4
    torch.testing.assert_close(joint.residual_writes(joint.site, rows), written)
    # All of it is in the stream behind the last block, whose direct path is another one's test.
    effects = random_lm.logit_effects("blocks.1.hook_resid_post", written)
    torch.testing.assert_close(joint.logit_effects(joint.site, rows), effects)
    assert joint.why_no_logits(joint.site) is None


@pytest.mark.parametrize("site", [STREAM, "blocks.0.hook_mlp_out+blocks.1.mlp.hook_in"])
def test_of_the_stream_or_an_input_nothing_adds_up(random_lm, site):
    joint = JointModel(random_lm, site, (1.0, 1.0))
    rows = torch.ones(2, joint.width(site))
    assert joint.logit_effects(site, rows) is None
    assert joint.residual_writes(site, rows) is None
    assert joint.why_no_logits(site)
    both = JointModel(random_lm, OUTPUTS[0], (1.0, 1.0), [random_lm])
    assert "path of its own" in (both.why_no_logits(OUTPUTS[0]) or "")
