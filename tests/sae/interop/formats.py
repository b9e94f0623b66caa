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
    Format("Gemma Scope", "`params.npz`", "Gemma Scope", "", LOADERS),
    Format("Gemma Scope 2", "`params.safetensors`, `config.json`", "Gemma Scope", "", LOADERS),
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
    Format("sparsify", "`cfg.json`, `sae.safetensors`", "sparsify", "", "sparsify 1.3.3"),
    Format("circuit-tracer", "`config.yaml`, `layer_0.safetensors`", "circuit-tracer",
           "circuit-tracer", "its formulas, in float64"),
]  # fmt: skip


def page() -> str:
    """The text of `docs/formats.md`."""
    head = """# Layouts of other tools

What `saelab import` reads and `saelab export` writes. What a file is, its contents say: names of
tensors, shapes, and a configuration beside it. A forward pass (codes and reconstruction) was
compared on random weights in the layout, with the version named. Cross-layer transcoders are read
and written in circuit-tracer's layout; crosscoders of other tools are not read.

Some releases do something to each row before the SAE reads it, which no weights can express: a
layer norm (OpenAI, SAELens' `layer_norm`), unit norm (`constant_norm_rescale`), or centring (a
model with centred writing weights). It is a part of the imported SAE, every verb applies it, and
`import` says so. The codes of such an SAE are in units of the row: the other tool's code times the
row's scale. A constant scale is folded into the weights; where the file does not say it, `import`
measures it on the store.

| layout | files | read | written by `--to` | compared with |
| --- | --- | --- | --- | --- |
"""
    rows = [f"| {f.name} | {f.files} | yes | {f.write or '-'} | {f.checked} |" for f in FORMATS]
    return head + "\n".join(rows) + "\n"
