"""circuit-tracer's directories mean what its transcoders compute, and go there and back."""

from dataclasses import replace

import pytest
import torch
from sae.interop.cases import refusal
from safetensors.torch import load_file, save_file

from saelab.sae.interop.circuit_tracer import write_circuit_tracer
from saelab.sae.interop.convert import from_foreign, to_foreign
from saelab.sae.interop.detect import read_foreign
from saelab.sae.transcoder import make_transcoder
from saelab.sae.variants import SAE_CONFIG

D_IN, D_SAE, D_OUT = 6, 10, 4
ROWS = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(0)) * 2 + 0.3
CONFIG = """\
# Transcoders of a random model.
model_name: "org/model"
model_kind: transcoder_set
feature_input_hook: mlp.hook_in
feature_output_hook: 'hook_mlp_out'  # past the post-norm
transcoders:
  - layer_0.safetensors
"""


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(*, skip: bool, jump: bool) -> dict[str, torch.Tensor]:
    tensors = {
        "W_enc": normal(1, D_SAE, D_IN),
        "W_dec": normal(2, D_SAE, D_OUT),
        "b_enc": normal(3, D_SAE),
        "b_dec": normal(4, D_OUT),
    }
    if jump:
        tensors["activation_function.threshold"] = normal(5, D_SAE).abs()
    if skip:
        tensors["W_skip"] = normal(6, D_OUT, D_IN)
    return tensors


def written(tensors) -> torch.Tensor:
    """The formula of SingleLayerTranscoder, in float64."""
    t = {name: value.double() for name, value in tensors.items()}
    pre = ROWS.double() @ t["W_enc"].T + t["b_enc"]
    codes = pre.relu() * (pre > t.get("activation_function.threshold", torch.zeros(D_SAE)))
    out = codes @ t["W_dec"] + t["b_dec"]
    return out + ROWS.double() @ t["W_skip"].T if "W_skip" in t else out


def directory(path, layers, **kinds):
    path.mkdir()
    (path / "config.yaml").write_text(CONFIG)
    for layer in layers:
        save_file(stored(**kinds), path / f"layer_{layer}.safetensors")
    return path


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("jump", [False, True], ids=["relu", "jump"])
def test_a_layer_means_what_circuit_tracer_computes_and_is_written_as_it_was(tmp_path, skip, jump):
    file = directory(tmp_path / "theirs", [7], skip=skip, jump=jump) / "layer_7.safetensors"
    for path in (file, file.parent):
        foreign = read_foreign(path)
        sae = from_foreign(foreign)
        found = sae.decode(sae.encode(ROWS), ROWS) if skip else sae.decode(sae.encode(ROWS))
        torch.testing.assert_close(found.double(), written(load_file(file)), rtol=0, atol=1e-4)
        assert (foreign.hook, foreign.hook_out) == ("blocks.7.mlp.hook_in", "blocks.7.hook_mlp_out")
        assert foreign.model == "org/model"
    again = replace(to_foreign(sae), hook=foreign.hook, hook_out=foreign.hook_out)
    write_circuit_tracer(again, tmp_path / "ours")
    back, before = (load_file(tmp_path / end / file.name) for end in ("ours", "theirs"))
    assert back.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=1e-6)


def test_layers_join_one_directory_unless_their_hooks_differ(tmp_path):
    sae = SAE_CONFIG.validate_python({"variant": "jumprelu", "d_sae": D_SAE, "k": 2}).build(D_IN)
    make_transcoder(sae, D_OUT)
    for layer in (0, 1):
        at = {"hook": f"blocks.{layer}.ln2.hook_out", "hook_out": f"blocks.{layer}.hook_mlp_out"}
        write_circuit_tracer(replace(to_foreign(sae), **at), tmp_path / "set")
    assert all((tmp_path / f"set/layer_{layer}.safetensors").exists() for layer in (0, 1))
    assert "feature_input_hook: mlp.hook_in\n" in (tmp_path / "set/config.yaml").read_text()
    other = {"hook": "blocks.2.ln2.hook_out", "hook_out": "blocks.2.mlp.hook_out"}
    said = refusal(
        lambda: write_circuit_tracer(replace(to_foreign(sae), **other), tmp_path / "set")
    )
    assert "already holds an SAE" in said


def test_what_circuit_tracer_has_no_form_for_is_refused(tmp_path):
    sae = SAE_CONFIG.validate_python({"variant": "topk", "d_sae": D_SAE, "k": 2}).build(D_IN)
    alone = replace(to_foreign(sae), hook="blocks.0.hook_resid_pre")
    said = refusal(lambda: write_circuit_tracer(alone, tmp_path / "a"))
    assert "takes transcoders of an MLP" in said
    make_transcoder(sae, D_OUT)
    at = {"hook": "blocks.0.mlp.hook_in", "hook_out": "blocks.0.mlp.hook_out"}
    said = refusal(lambda: write_circuit_tracer(replace(to_foreign(sae), **at), tmp_path / "a"))
    assert "only transcoders whose latents have thresholds" in said
    assert not (tmp_path / "a").exists()


def test_directories_of_several_layers_and_cross_layer_transcoders_are_refused(tmp_path):
    several = directory(tmp_path / "several", [0, 1], skip=False, jump=False)
    assert "holds 2 layers; give the file of one" in refusal(lambda: read_foreign(several))
    (several / "config.yaml").write_text("model_kind: cross_layer_transcoder\n")
    assert "holds a cross_layer_transcoder" in refusal(lambda: read_foreign(several))
    (several / "config.yaml").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in refusal(lambda: read_foreign(several / "layer_0.safetensors"))
    (several / "config.yaml").unlink()
    assert read_foreign(several / "layer_0.safetensors").hook is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('model_name: "org/model\n', "is not valid YAML"),
        ("model_kind: [transcoder_set\n", "is not valid YAML"),
        ("[" * 20_000, "is not valid YAML"),
        ("- model_name: m\n", "is no mapping"),
        ("", "is no mapping"),
        (" " * (2**20 + 1), "at most 1,048,576"),
    ],
    ids=["quote", "bracket", "deep", "list", "empty", "large"],
)
def test_a_config_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, content, said):
    path = directory(tmp_path / "broken", [0], skip=False, jump=False)
    (path / "config.yaml").write_text(content)
    for given in (path, path / "layer_0.safetensors"):
        told = refusal(lambda given=given: read_foreign(given))
        assert "config.yaml" in told
        assert said in told
        assert "\n" not in told


def test_of_a_config_only_texts_are_taken(tmp_path):
    path = directory(tmp_path / "odd", [0], skip=False, jump=False)
    (path / "config.yaml").write_text("{model_name: m, feature_input_hook: [a], scan: {model: x}}")
    foreign = read_foreign(path)
    assert (foreign.model, foreign.hook) == ("m", None)
