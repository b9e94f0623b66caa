"""SAEs that reconstruct their site, as files of every layout that `saelab import` reads.

An SAE's atoms are a rotation's rows, with both signs: half of the latents fire, and x_hat = x. A
transcoder's decoder is fitted by least squares. So a file that is read wrongly shows in its FVU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sae.interop.cases import write_json
from safetensors.torch import save_file
from torch import Tensor

WIDER = 6
"""Latents of a transcoder, in inputs."""
SMALL = 1e-3
"""A threshold below which hardly a latent fires."""


class Rows(NamedTuple):
    """What is read and written, by site."""

    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]


class Layout(NamedTuple):
    """A layout and where it is tried.

    Attributes:
        name: as in `formats.FORMATS`, with what else is special.
        model: of `lm.architectures.ARCHITECTURES`.
        sites: what it reads, and what a transcoder writes instead.
        source: what is given to `saelab import`: a release's name, or a path in the folder.
        write: writes the files below the folder.
        given: more options of the import.
        exports: values of `saelab export --to` that take it.
        loss: the largest FVU that is right.
    """

    name: str
    model: str
    sites: tuple[str, ...]
    source: str
    write: Callable[[Path, Rows], None]
    given: tuple[object, ...] = ()
    exports: tuple[str, ...] = ("sae-lens",)
    loss: float = 1e-3


def mirrored(d: int, *, centred: bool, scale: float = 1.0) -> dict[str, Tensor]:
    """An SAE of 2 d latents with x_hat = x, of rows times `scale`."""
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(d)))[0]
    W_enc = torch.cat([turn, -turn], dim=1)
    b_dec = scale * torch.linspace(-0.1, 0.1, d)
    b_enc = torch.zeros(2 * d) if centred else -b_dec @ W_enc
    return {"W_enc": W_enc, "W_dec": W_enc.T.contiguous(), "b_enc": b_enc, "b_dec": b_dec}


def fitted(rows: Rows, *, skip: bool = False) -> dict[str, Tensor]:
    """A transcoder of `WIDER` as many latents as inputs."""
    (x,), (y,) = rows
    d = x.shape[1]
    W_enc = torch.randn(d, WIDER * d, generator=torch.Generator().manual_seed(1)) / d**0.5
    linear = torch.linalg.lstsq(x, y - y.mean(0)).solution
    rest = y - x @ linear if skip else y
    codes = (x @ W_enc).relu()
    fit = torch.linalg.lstsq(torch.cat([codes, codes.new_ones(len(x), 1)], 1), rest).solution
    tensors = {"W_enc": W_enc, "W_dec": fit[:-1], "b_enc": torch.zeros(WIDER * d), "b_dec": fit[-1]}
    return tensors | ({"skip": linear} if skip else {})


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def thresholds(tensors: dict[str, Tensor]) -> Tensor:
    return torch.full_like(tensors["b_enc"], SMALL)


def saved(tensors: dict[str, Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(plain(tensors), file)
    else:
        torch.save(plain(tensors), file)


def width(rows: Rows) -> int:
    return rows.reads[0].shape[1]


def linear(tensors: dict[str, Tensor], encoder: str, decoder: str) -> dict[str, Tensor]:
    """Both matrices as nn.Linear stores them."""
    return {f"{encoder}.weight": tensors["W_enc"].T, f"{decoder}.weight": tensors["W_dec"].T}


def sae_lens(folder: str, hook: str | None, architecture: str = "standard", **settings: Any):
    def write(root: Path, rows: Rows) -> None:
        tensors = mirrored(width(rows), centred=True)
        if architecture == "jumprelu":
            tensors["threshold"] = thresholds(tensors)
        saved(tensors, root / folder / "sae_weights.safetensors")
        base = {"architecture": architecture, "d_in": width(rows), "d_sae": 2 * width(rows)}
        base |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
        more = {"metadata": {"model_name": "gpt2", "hook_name": hook}}
        write_json(root / folder / "cfg.json", base | more | settings)

    return write


def gemma_scope(folder: str, *, transcoder: bool = False):
    def write(root: Path, rows: Rows) -> None:
        tensors = fitted(rows) if transcoder else mirrored(width(rows), centred=False)
        (root / folder).mkdir(parents=True)
        stored = tensors | {"threshold": thresholds(tensors)}
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in stored.items()}
        np.savez(root / folder / "params.npz", **arrays)

    return write


def gemma_scope_2(folder: str, *modules: str, skip: bool = False):
    def write(root: Path, rows: Rows) -> None:
        transcoder = len(set(modules)) > 1
        found = fitted(rows, skip=skip) if transcoder else mirrored(width(rows), centred=False)
        linear = {"affine_skip_connection": found.pop("skip")} if skip else {}
        tensors = found | {"threshold": thresholds(found)}
        lowered = {name.replace("W_", "w_"): tensor for name, tensor in tensors.items()}
        saved(lowered | linear, root / folder / "params.safetensors")
        ends = {f"hf_hook_point_{end}": m for end, m in zip(("in", "out"), modules, strict=True)}
        write_json(root / folder / "config.json", {"architecture": "jump_relu"} | ends)

    return write


def of_layers(rows: Rows) -> list[dict[str, Tensor]]:
    """W_enc [d m], W_dec [m layer d] and b_dec of each layer; earlier targets get nothing."""
    n, d = len(rows.reads), width(rows)
    W_enc = torch.randn(d, WIDER * d, generator=torch.Generator().manual_seed(1)) / d**0.5
    codes = [(x @ W_enc).relu() for x in rows.reads]
    W_dec, b_dec = torch.zeros(n, WIDER * d, n, d), torch.zeros(n, d)
    for target, y in enumerate(rows.writes):
        known = torch.cat([*codes[: target + 1], torch.ones(len(y), 1)], 1)
        fit = torch.linalg.lstsq(known, y).solution
        W_dec[: target + 1, :, target] = fit[:-1].view(target + 1, WIDER * d, d)
        b_dec[target] = fit[-1]
    return [{"W_enc": W_enc, "W_dec": W_dec[i], "b_dec": b_dec[i]} for i in range(n)]


def gemma_scope_2_layers(folder: str, part: str, written: str):
    def write(root: Path, rows: Rows) -> None:
        for number, layer in enumerate(of_layers(rows)):
            tensors = {n.replace("W_", "w_"): tensor for n, tensor in layer.items()}
            tensors["b_enc"] = torch.zeros(layer["W_enc"].shape[1])
            tensors["threshold"] = thresholds(tensors)
            saved(tensors, root / folder / f"params_layer_{number}.safetensors")
        ends = {"hf_hook_point_in": part, "hf_hook_point_out": written}
        write_json(root / folder / "config.json", {"architecture": "jump_relu"} | ends)

    return write


def circuit_tracer_layers(root: Path, rows: Rows) -> None:
    for number, layer in enumerate(of_layers(rows)):
        tensors = {"W_enc": layer["W_enc"].T, "b_dec": layer["b_dec"]}
        tensors["b_enc"] = torch.zeros(layer["W_enc"].shape[1])
        named = {f"{name}_{number}": tensor for name, tensor in tensors.items()}
        saved(named, root / f"clt/W_enc_{number}.safetensors")
        W_dec = {f"W_dec_{number}": layer["W_dec"][:, number:]}
        saved(W_dec, root / f"clt/W_dec_{number}.safetensors")
    config = "model_kind: cross_layer_transcoder\nfeature_input_hook: mlp.hook_in\n"
    (root / "clt/config.yaml").write_text(config + "feature_output_hook: hook_mlp_out\n")


def circuit_tracer(file: str, *, skip: bool = False):
    def write(root: Path, rows: Rows) -> None:
        tensors = fitted(rows, skip=skip)
        more = {"W_skip": tensors.pop("skip").T} if skip else {}
        saved(tensors | {"W_enc": tensors["W_enc"].T} | more, root / file)

    return write


def qwen_scope(root: Path, rows: Rows) -> None:
    tensors = mirrored(width(rows), centred=False)
    turned = {name: tensors[name].T for name in ("W_enc", "W_dec")}
    saved(tensors | turned, root / "layer1.sae.pt")


def llama_scope(folder: str, reads: str, writes: str, *, later: bool = False):
    def write(root: Path, rows: Rows) -> None:
        d = width(rows)
        # Rows of mean norm 2 are scaled to sqrt(d), and what is written from there to norm 3.
        into, out = d**0.5 / 2, (d**0.5 / 3 if reads != writes else d**0.5 / 2)
        if reads == writes:
            tensors = mirrored(d, centred=False, scale=into)
        else:
            tensors = fitted(Rows((rows.reads[0] * into,), (rows.writes[0] * out,)))
        stored = linear(tensors, "encoder", "decoder")
        stored |= {"encoder.bias": tensors["b_enc"], "decoder.bias": tensors["b_dec"]}
        norms = {"in": 2.0, "out": 2.0 if reads == writes else 3.0}
        settings = {
            "d_model": d, "act_fn": "jumprelu", "norm_activation": "dataset-wise",
            "jump_relu_threshold": SMALL, "sparsity_include_decoder_norm": True,
            "dataset_average_activation_norm": None if later else norms,
            "hook_point_in": reads, "hook_point_out": writes,
        }  # fmt: skip
        if later:
            stored["log_jumprelu_threshold"] = thresholds(tensors).log()
        weights = "sae_weights.safetensors" if later else "checkpoints/final.safetensors"
        saved(stored, root / folder / weights)
        write_json(root / folder / ("config.json" if later else "hyperparams.json"), settings)

    return write


def openai(root: Path, rows: Rows) -> None:
    tensors = mirrored(width(rows), centred=True)
    stored: dict[str, Any] = plain(linear(tensors, "encoder", "decoder"))
    stored |= {"pre_bias": tensors["b_dec"], "latent_bias": tensors["b_enc"]}
    rule = {"k": width(rows), "postact_fn": "ReLU"}
    torch.save(stored | {"activation": "TopK", "activation_state_dict": rule}, root / "1.pt")


def goodfire(root: Path, rows: Rows) -> None:
    tensors = mirrored(width(rows), centred=False)
    stored = linear(tensors, "encoder_linear", "decoder_linear")
    biases = {"encoder_linear.bias": tensors["b_enc"], "decoder_linear.bias": tensors["b_dec"]}
    saved(stored | biases, root / "Llama-3.1-8B-Instruct-SAE-l1.pth")


def kissane(root: Path, rows: Rows) -> None:
    saved(mirrored(width(rows), centred=True), root / "L1_v9.pt")
    write_json(root / "L1_v9_cfg.json", {"act_name": "blocks.1.hook_z"})


def dictionary_learning(root: Path, rows: Rows) -> None:
    folder, d = root / "resid_post_layer_1/trainer_0", width(rows)
    tensors = mirrored(d, centred=True)
    stored = linear(tensors, "encoder", "decoder") | {"encoder.bias": tensors["b_enc"]}
    k = {"k": torch.tensor(d, dtype=torch.int), "threshold": torch.tensor(SMALL)}
    saved(stored | {"b_dec": tensors["b_dec"]} | k, folder / "ae.pt")
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": d, "dict_size": 2 * d, "k": d}
    write_json(folder / "config.json", {"trainer": trainer})


def without_config(root: Path, rows: Rows) -> None:
    tensors = mirrored(width(rows), centred=True)
    biases = {"encoder.bias": tensors["b_enc"], "bias": tensors["b_dec"]}
    saved(linear(tensors, "encoder", "decoder") | biases, root / "ae.pt")


def sparsify(folder: str, *, transcode: bool = False):
    def write(root: Path, rows: Rows) -> None:
        d = width(rows)
        found = fitted(rows, skip=True) if transcode else mirrored(d, centred=True)
        skip = {"W_skip": found.pop("skip").T} if transcode else {}
        stored = {"encoder.weight": found["W_enc"].T, "encoder.bias": found["b_enc"]}
        saved(
            stored | {n: found[n] for n in ("W_dec", "b_dec")} | skip,
            root / folder / "sae.safetensors",
        )
        m = len(found["b_enc"])
        settings = {"activation": "topk", "num_latents": m, "k": m if transcode else d}
        settings |= {"d_in": d, "transcode": transcode, "skip_connection": transcode}
        write_json(root / folder / "cfg.json", settings)

    return write


def stream(layer: int) -> tuple[str, ...]:
    return (f"blocks.{layer}.hook_resid_post",)


def mlp(layer: int, reads: str = "mlp.hook_in") -> tuple[str, ...]:
    return (f"blocks.{layer}.{reads}", f"blocks.{layer}.hook_mlp_out")


def joint(*parts: str) -> tuple[str, ...]:
    return tuple("+".join(f"blocks.{layer}.{part}" for layer in range(2)) for part in parts)


FITTED = 0.9
TRACER = ("circuit-tracer", "sae-lens")
NORM = "model.layers.{}.pre_feedforward_layernorm.output"
AFTER = "model.layers.{}.post_feedforward_layernorm.output"
LAYOUTS = [
    Layout("SAELens", "GPT-2", ("blocks.1.hook_resid_pre",), "lens",
           sae_lens("lens", "blocks.1.hook_resid_pre", "jumprelu"),
           exports=("sae-lens", "dictionary-learning")),
    Layout("SAELens, layer norm", "GPT-2", stream(1),
           "openai/gpt2-small/resid-post/1/32k",
           sae_lens("v5_32k_layer_1.pt", stream(1)[0], "topk", k=48,
                    normalize_activations="layer_norm")),
    Layout("SAELens, centred rows", "GPT-2", ("blocks.1.hook_resid_pre",), "gpt2-small/res-jb/1",
           sae_lens("blocks.1.hook_resid_pre", None)),
    Layout("Gemma Scope", "Gemma 2", stream(1), "gemma-scope/2b-pt/res/1/16k/71",
           gemma_scope("layer_1/width_16k/average_l0_71")),
    Layout("Gemma Scope, heads", "Gemma 2", ("blocks.1.attn.hook_z",),
           "gemma-scope/2b-pt/att/1/16k/71",
           gemma_scope("layer_1/width_16k/average_l0_71")),
    Layout("Gemma Scope, transcoder", "Gemma 2", mlp(1, "ln2.hook_normalized"),
           "gemma-scope/2b-pt/transcoders/1/16k/71",
           gemma_scope("layer_1/width_16k/average_l0_71", transcoder=True), loss=FITTED),
    Layout("Gemma Scope 2", "Gemma 3", stream(1), "gemma-scope-2/270m-pt/resid/1/16k/medium",
           gemma_scope_2("resid_post/layer_1_width_16k_l0_medium", *2 * ["model.layers.1.output"])),
    Layout("Gemma Scope 2, affine transcoder", "Gemma 3", mlp(1),
           "gemma-scope-2/270m-pt/transcoder/1/16k/medium-affine",
           gemma_scope_2("transcoder/layer_1_width_16k_l0_medium_affine", NORM.format(1),
                         AFTER.format(1), skip=True), exports=TRACER, loss=FITTED),
    Layout("Gemma Scope 2, CLT", "Gemma 3", joint("mlp.hook_in", "hook_mlp_out"), "clt",
           gemma_scope_2_layers("clt", NORM.format("{all}"), AFTER.format("{all}")),
           exports=("circuit-tracer",), loss=FITTED),
    Layout("Gemma Scope 2, crosscoder", "Gemma 3", joint("hook_resid_post"), "crosscoder",
           gemma_scope_2_layers("crosscoder", *2 * ["model.layers.{0,1}.output"]),
           exports=(), loss=FITTED),
    Layout("Qwen-Scope", "Qwen 3", stream(1), "layer1.sae.pt", qwen_scope, ("--k", 48),
           ("sae-lens", "sparsify")),
    Layout("Llama Scope", "Llama 3 (scaled rope)", stream(1), "llama-scope/resid/1/8x",
           llama_scope("Llama3_1-8B-Base-L1R-8x", *2 * stream(1))),
    Layout("Llama Scope, transcoder", "Llama 3 (scaled rope)", mlp(1, "ln2.hook_out"),
           "llama-scope/transcoder/1/8x",
           llama_scope("Llama3_1-8B-Base-L1TC-8x", *mlp(1, "ln2.hook_out")),
           exports=TRACER, loss=FITTED),
    Layout("Llama Scope R1", "Llama 3 (scaled rope)", stream(1), "llama-scope-r1/base/1",
           llama_scope("800M-Slimpajama-0-OpenR1-Math-220k/L1R", *2 * stream(1), later=True)),
    Layout("OpenAI", "GPT-2", stream(1), "1.pt", openai, ("--site", *stream(1))),
    Layout("Goodfire", "Llama 3 (scaled rope)", stream(1), "Llama-3.1-8B-Instruct-SAE-l1.pth",
           goodfire, exports=("sae-lens", "dictionary-learning")),
    Layout("Kissane et al.", "GPT-2", ("blocks.1.attn.hook_z",), "L1_v9.pt", kissane),
    Layout("dictionary_learning", "Qwen 2", stream(1), "andyrdt/qwen2.5-7b-instruct/1/0",
           dictionary_learning,
           exports=("sae-lens", "dictionary-learning")),
    Layout("dictionary_learning, no config.json", "Pythia (GPT-NeoX, parallel)", stream(1), "ae.pt",
           without_config, ("--site", *stream(1))),
    Layout("sparsify", "Llama 2", stream(1), "eleutherai/llama-3-8b-32x/1",
           sparsify("layers.1"), exports=("sae-lens", "sparsify")),
    Layout("sparsify, skip transcoder", "Llama 2", mlp(1), "layers.1.mlp",
           sparsify("layers.1.mlp", transcode=True),
           ("--site", mlp(1)[0], "--target-site", mlp(1)[1]),
           ("sparsify",), FITTED),
    Layout("circuit-tracer", "Qwen 3", mlp(1), "qwen3-transcoders/0.6b/1",
           circuit_tracer("layer_1.safetensors"), exports=TRACER, loss=FITTED),
    Layout("circuit-tracer, skip", "Llama 3 (scaled rope)", mlp(0), "layer_0.safetensors",
           circuit_tracer("layer_0.safetensors", skip=True),
           ("--site", mlp(0)[0], "--target-site", mlp(0)[1]), ("circuit-tracer",), FITTED),
    Layout("circuit-tracer, CLT", "Llama 3 (scaled rope)", joint("mlp.hook_in", "hook_mlp_out"),
           "clt", circuit_tracer_layers, exports=("circuit-tracer",), loss=FITTED),
]  # fmt: skip
