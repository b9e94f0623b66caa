"""What is known of each layout, from which `docs/formats.md` is written."""

from typing import NamedTuple


class Format(NamedTuple):
    """A layout: who writes it, its files, its source in `ForeignSAE`, and what was compared.

    Attributes:
        write: the value of `saelab export --to`, or empty.
        checked: the code whose forward pass ours was compared with on random weights, and its
            version; or what else the numbers were compared with.
    """

    name: str
    files: str
    source: str
    write: str
    checked: str


LOADERS = "SAELens 6.54.12's loader"
FORMATS = [
    Format("SAELens", "`cfg.json`, `sae_weights.safetensors`", "SAELens", "sae-lens",
           "SAELens 6.54.12 (read and written)"),
    Format("Gemma Scope", "`params.npz`", "Gemma Scope", "",
           f"{LOADERS}, circuit-tracer 0.5.0 (transcoders)"),
    Format("Gemma Scope 2", "`params.safetensors`, `config.json`", "Gemma Scope", "",
           f"{LOADERS}, circuit-tracer 0.5.0 (affine transcoders)"),
    Format("Qwen-Scope", "`layer3.sae.pt`", "Qwen-Scope", "", LOADERS),
    Format("Llama Scope", "`hyperparams.json`, `checkpoints/final.safetensors`", "Llama Scope", "",
           f"{LOADERS} (SAEs; transcoders: OpenMOSS's formulas)"),
    Format("Llama Scope R1", "`config.json`, `sae_weights.safetensors`", "Llama Scope", "",
           LOADERS),
    Format("OpenAI", "a `.pt` with `pre_bias`, `latent_bias`", "OpenAI", "",
           "the formulas of openai/sparse_autoencoder, in float64"),
    Format("Goodfire", "a `.pt` with `encoder_linear`", "Goodfire", "", LOADERS),
    Format("Kissane et al.", "a `.pt` with four tensors, `..._cfg.json`", "Kissane et al.", "",
           LOADERS),
    Format("dictionary_learning", "`ae.pt`, `config.json`", "dictionary_learning",
           "dictionary-learning", "dictionary_learning 0.1.0 (read)"),
    Format("sparsify", "`cfg.json`, `sae.safetensors`", "sparsify", "sparsify",
           "sparsify 1.3.3 (read and written)"),
    Format("circuit-tracer", "`config.yaml`, `layer_0.safetensors`", "circuit-tracer",
           "circuit-tracer", "circuit-tracer 0.5.0 (read)"),
]  # fmt: skip
LAYERED = [
    Format("Gemma Scope 2, CLTs and crosscoders", "`params_layer_0.safetensors`, ...",
           "Gemma Scope 2", "",
           "circuit-tracer 0.5.0 (CLTs); their formulas, in float64"),
]  # fmt: skip
"""Layouts of SAEs of several layers, which have readers of their own."""


def page() -> str:
    """The text of `docs/formats.md`."""
    head = """# Layouts of other tools

What `saelab import` reads and `saelab export` writes. What a file is, its contents say: names of
tensors, shapes, and a configuration beside it. A forward pass (codes and reconstruction) was
compared on random weights in the layout, with the version named. Cross-layer transcoders are read
in circuit-tracer's layout and that of Gemma Scope 2 (without affine skip connections), and written
in circuit-tracer's; of crosscoders those of Gemma Scope 2 are read.

`W_enc` and `W_dec` of 16 bits stay so, on disk and in memory, unless a scale is folded into them or
`--dtype` asks; they are widened to float32 as they are read, so sums are float32's. Gated and
matching-pursuit SAEs, SAEs of normalised rows and cross-layer transcoders are float32. Files of
256 MiB or more are not read but mapped: weights take memory where they are used, and import and
export copy them tensor by tensor. A file of more than 4 GiB is checked against its seal by `saelab
verify` alone.

Some releases do something to each row before the SAE reads it, which no weights can express: a
layer norm (OpenAI, SAELens' `layer_norm`), unit norm (`constant_norm_rescale`), or centring (a
model with centred writing weights). It is a part of the imported SAE, every verb applies it, and
`import` says so. The codes of such an SAE are in units of the row: the other tool's code times the
row's scale. A constant scale is folded into the weights; where the file does not say it, `import`
measures it on the store.

| layout | files | read | written by `--to` | compared with |
| --- | --- | --- | --- | --- |
"""
    rows = [
        f"| {f.name} | {f.files} | yes | {f.write or '-'} | {f.checked} |"
        for f in (*FORMATS, *LAYERED)
    ]
    return head + "\n".join(rows) + "\n"
