"""A checkpoint is read whole or refused by name, by both back ends alike."""

import json
import shutil
from typing import Any

import pytest
import torch
import transformers
from lm.architectures import PROMPT, VOCABULARY, save_architecture, save_tokenizer
from lm.tokenizers_of_kinds import byte_level
from safetensors.torch import load_file, save_file

from saelab.config import UsageError
from saelab.lm.hf import load_hugging_face_model, serves
from saelab.lm.load import load_language_model
from saelab.lm.tokenizer_file import as_stated

BOTH = pytest.mark.parametrize("load", [load_language_model, load_hugging_face_model])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_architecture(tmp_path_factory.mktemp("whole") / "model", "Llama 2")


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refusal(load, path) -> str:
    with pytest.raises(UsageError) as caught:
        load(str(path), device="cpu")
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", ")"))
    return text


def weights_of(path, change) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def config_of(path, **changes) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@BOTH
def test_missing_weights_are_named(copy, load):
    weights_of(copy, lambda w: w.pop("lm_head.weight"))
    assert "lacks the weights lm_head.weight, which would be random" in refusal(load, copy)


@BOTH
def test_of_many_missing_weights_a_few_are_named_and_all_counted(copy, load):
    def without_a_layer(weights):
        for name in [name for name in weights if ".layers.1." in name]:
            del weights[name]

    weights_of(copy, without_a_layer)
    assert "model.layers.1.mlp.gate_proj.weight and 6 more" in refusal(load, copy)


@BOTH
def test_weights_without_a_place_are_named(copy, load):
    config_of(copy, num_hidden_layers=1)
    assert "gives no place: model.layers.1.input_layernorm.weight" in refusal(load, copy)


@BOTH
def test_weights_of_another_shape_are_named_with_both(copy, load):
    weights_of(copy, lambda w: w.update({"model.norm.weight": torch.zeros(7)}))
    assert "model.norm.weight is (7,) in the file and (48,) in the model" in refusal(load, copy)


@BOTH
def test_buffers_of_older_versions_are_no_matter(copy, load):
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6),
        "model.layers.0.self_attn.masked_bias": torch.zeros(1),
        "model.layers.0.self_attn.attn.bias": torch.zeros(4, 4),
    }
    weights_of(copy, lambda w: w.update(old))
    assert load(str(copy), device="cpu").info.n_layers == 2


@BOTH
def test_a_model_with_a_tied_head_is_whole_without_it(tmp_path, load):
    path = save_architecture(tmp_path / "tied", "GPT-2")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    assert load(path, device="cpu").info.n_layers == 2


@BOTH
@pytest.mark.parametrize("kind", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_model_without_a_head_for_tokens_is_refused(tmp_path, load, kind):
    config = transformers.LlamaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    config.vocab_size = 48
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    text = refusal(load, tmp_path)
    assert f"holds a {kind} " in text
    assert "needs a LlamaForCausalLM" in text


@BOTH
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llama9"}, r"model_type 'llama9', which transformers"),
        ({"model_type": "t5"}, r"'t5', which is no causal language model"),
        ({"model_type": None}, r"model_type None"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}, r"which saelab does not run"),
        ({"num_attention_heads": 5}, r"not a multiple of the number of attention heads \(5\)"),
        ({"model_type": "gpt2"}, r"lacks the weights transformer\.h\.0"),
    ],
)
def test_a_configuration_that_is_not_this_models_is_refused(copy, load, changes, expected):
    config_of(copy, **changes)
    with pytest.raises(UsageError, match=expected):
        load(str(copy), device="cpu")


@BOTH
def test_broken_files_are_refused(copy, load):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert "damaged or incomplete" in refusal(load, copy)
    file.unlink()
    assert "there is no model.safetensors" in refusal(load, copy)
    (copy / "model.safetensors.index.json").write_text("{}")
    assert "is no index of shards" in refusal(load, copy)
    (copy / "config.json").write_text("{")
    assert "not a valid JSON" in refusal(load, copy)
    (copy / "config.json").write_text("[]")
    assert "holds no JSON object" in refusal(load, copy)


@BOTH
def test_pickled_weights_are_not_read(copy, load):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    text = refusal(load, copy)
    assert "only pickled weights (pytorch_model.bin)" in text
    assert "save_pretrained()" in text


@BOTH
def test_a_missing_shard_is_named(whole, copy, load):
    (copy / "model.safetensors").unlink()
    model = transformers.AutoModelForCausalLM.from_pretrained(whole)
    model.save_pretrained(copy, max_shard_size="60KB")
    assert load(str(copy), device="cpu").info.n_layers == 2
    shard = min(copy.glob("model-*.safetensors"))
    shard.unlink()
    assert f"lacks {shard.name} of its" in refusal(load, copy)


@BOTH
@pytest.mark.parametrize("tokenizer_class", [None, "LlamaTokenizer", "GPT2Tokenizer"])
def test_a_checkpoint_without_a_vocabulary_has_no_tokenizer(copy, load, tokenizer_class):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    if tokenizer_class is not None:
        config = json.dumps({"tokenizer_class": tokenizer_class})
        (copy / "tokenizer_config.json").write_text(config)
    assert "has no tokenizer: none of tokenizer.json" in refusal(load, copy)


def test_a_tokenizer_that_is_code_or_garbage_is_refused(copy):
    (copy / "tokenizer.json").write_text("{}")
    assert "its tokenizer cannot be read" in refusal(load_language_model, copy)
    (copy / "tokenizer.json").unlink()
    auto = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
    (copy / "tokenizer_config.json").write_text(json.dumps(auto))
    assert "needs Python code of its own" in refusal(load_language_model, copy)


def test_text_is_split_as_tokenizer_json_says_where_transformers_takes_it_for_qwens(
    tmp_path, capsys
):
    path = save_architecture(tmp_path, "Qwen 2")
    lm = load_hugging_face_model(path, device="cpu")
    assert lm.tokenizer.encode(PROMPT) == [VOCABULARY.index(word) for word in PROMPT.split()]
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "Note: " in line]
    assert f"the tokenizer of {path} for a Qwen2Tokenizer, which splits text otherwise" in said


def test_qwens_own_tokenizer_stays_unless_the_file_has_another_rule(tmp_path, capsys):
    model = json.loads(byte_level().backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    own: Any = transformers.Qwen2Tokenizer
    own(model["vocab"], merges).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert as_stated("it", str(tmp_path), loaded) is loaded
    file = tmp_path / "tokenizer.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}})
    )
    assert "Note: " not in capsys.readouterr().err
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = as_stated("it", str(tmp_path), loaded).encode("The CAT", add_special_tokens=False)
    assert found == loaded.encode("the cat", add_special_tokens=False)
    assert found != loaded.encode("The CAT", add_special_tokens=False)
    assert "Note: " in capsys.readouterr().err


def test_a_file_is_not_a_checkpoint(copy):
    assert "give the directory" in refusal(load_language_model, copy / "config.json")
    assert not serves(str(copy / "config.json"), [])


def test_an_architecture_that_transformer_lens_lacks_is_refused_by_its_name(tmp_path):
    size: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    size |= {"vocab_size": 48, "num_attention_heads": 4}
    config = transformers.CONFIG_MAPPING["biogpt"](**size)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    text = refusal(load_language_model, tmp_path)
    assert "is a BioGptForCausalLM, which TransformerLens" in text


def test_a_checkpoint_is_read_once(whole, monkeypatch):
    """Neither the digest nor TransformerLens reads the weights again."""
    read, original = [], transformers.LlamaForCausalLM.from_pretrained

    def counted(*args, **options):
        read.append(args)
        return original(*args, **options)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", counted)
    lm = load_language_model(whole, device="cpu")
    assert len(read) == 1
    assert len(lm.info.weights_digest) == 64


def test_a_model_that_also_sees_is_read_without_installing_anything(tmp_path, monkeypatch):
    """TransformerLens would run pip for torchvision, which may replace torch on the way."""
    import subprocess

    text: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 48}
    eyes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    eyes |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=eyes, mm_tokens_per_image=4, image_token_index=40
    )
    made = transformers.AutoModelForCausalLM.from_config(config)
    assert "Conditional" in type(made).__name__
    made.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    called: list[object] = []
    monkeypatch.setattr(subprocess, "check_call", lambda *command, **_: called.append(command))
    lm = load_language_model(str(tmp_path), device="cpu")
    tokens = torch.tensor([[1, 5, 7, 9]])
    hook = "blocks.1.hook_resid_post"
    expected = made.eval()(tokens, output_hidden_states=True)
    assert called == []
    assert (lm.info.n_layers, lm.info.d_model) == (2, 48)
    torch.testing.assert_close(lm.logits(tokens), expected.logits, rtol=1e-4, atol=1e-5)
    assert lm.capture(tokens, [hook])[hook].shape == (1, 4, 48)
