"""Whether saelab and circuit-tracer compute the same attribution graph of the same model.

    python -m tools.tracer make DIR      a random Llama, and transcoders that saelab writes
    PYTHON tools/tracer.py trace DIR     circuit-tracer's graph, where it is installed (0.5.0)
    python -m tools.tracer compare DIR   saelab's graph of what was read back, edge by edge

circuit-tracer needs older packages than saelab, so it has an environment of its own.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from saelab.analysis.circuits.graph_data import AttributionGraph
    from saelab.analysis.circuits.nodes import Node

LAYERS, WIDTH, LATENTS, WORDS = 3, 32, 48, 40
TOKENS = [0, 5, 9, 2, 31, 9, 17]
KINDS = {"error": 0, "embedding": 1, "latent": 2, "target": 3}
"""The kinds of nodes that both have; saelab's biases are none of circuit-tracer's."""
Key = tuple[int, int, int, int]
"""A node: its kind, layer, position and latent."""


def make(out: Path) -> None:
    """A model and transcoders with random weights, none of them zero."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from saelab.sae.interop.circuit_tracer import write_circuit_tracer
    from saelab.sae.interop.foreign import ForeignSAE

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0,
    )  # fmt: skip
    lm = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3 + (weight.dim() == 1))
    lm.save_pretrained(out / "model")
    words = {"<bos>": 0, "<unk>": 1, **{f"w{n}": n for n in range(2, WORDS)}}
    known = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=known, bos_token="<bos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(out / "model")
    for layer in range(LAYERS):
        transcoder = ForeignSAE(
            W_enc=torch.randn(WIDTH, LATENTS), W_dec=torch.randn(LATENTS, WIDTH) * 0.3,
            b_enc=torch.randn(LATENTS), b_dec=torch.randn(WIDTH), threshold=torch.rand(LATENTS),
            subtract_b_dec=False, transcoder=True, W_skip=torch.randn(WIDTH, WIDTH) * 0.1,
            hook=f"blocks.{layer}.mlp.hook_in", hook_out=f"blocks.{layer}.hook_mlp_out",
            model="random", source="random",
        )  # fmt: skip
        write_circuit_tracer(transcoder, out / "transcoders")


def trace(out: Path) -> None:
    """circuit-tracer's graph of the likeliest token; no package of saelab is imported."""
    from transformers import LlamaForCausalLM

    hf = LlamaForCausalLM.from_pretrained(out / "model")
    model, tokens = _replaced(out, hf), torch.tensor(TOKENS)
    with torch.no_grad():
        difference = (model(tokens[None]) - hf(tokens[None]).logits).abs().max()
    graph = import_module("circuit_tracer").attribute(tokens, model, max_n_logits=1)
    (target,) = graph.logit_targets
    np.savez(
        out / "graph.npz",
        active=graph.active_features[graph.selected_features].numpy(),
        edges=graph.adjacency_matrix.numpy(),
        target=target.vocab_idx,
    )
    _say(f"{graph.adjacency_matrix.shape[0]} nodes; its logits are the model's to {difference:.1e}")


def _replaced(out: Path, hf: "LlamaForCausalLM") -> nn.Module:
    """The model as circuit-tracer has it, with the transcoders that saelab wrote."""
    from transformers import PreTrainedTokenizerFast

    # Not among saelab's own packages, or there in another version.
    lens = import_module("transformer_lens")
    convert = import_module("transformer_lens.pretrained.weight_conversions")
    stored = import_module("circuit_tracer.transcoder.single_layer_transcoder")
    models = import_module("circuit_tracer.replacement_model.replacement_model_transformerlens")
    config = lens.HookedTransformerConfig(
        n_layers=LAYERS, d_model=WIDTH, n_ctx=64, d_head=WIDTH // 4, n_heads=4, d_mlp=64,
        n_key_value_heads=2, d_vocab=WORDS, act_fn="silu", gated_mlp=True,
        eps=hf.config.rms_norm_eps, normalization_type="RMS", final_rms=True,
        positional_embedding_type="rotary", rotary_dim=WIDTH // 4, rotary_adjacent_pairs=False,
        rotary_base=10_000, original_architecture="LlamaForCausalLM", device="cpu",
    )  # fmt: skip
    paths = {n: str(out / f"transcoders/layer_{n}.safetensors") for n in range(LAYERS)}
    transcoders = stored.load_transcoder_set(
        paths, "random", "mlp.hook_in", "hook_mlp_out", device=torch.device("cpu"),
        lazy_encoder=False, lazy_decoder=False,
    )  # fmt: skip
    model = models.TransformerLensReplacementModel.from_config(config, transcoders)
    file = str(out / "model/tokenizer.json")
    words = PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<bos>", unk_token="<unk>")
    model.tokenizer = words
    moved = {".mlp.": ".mlp.old_mlp.", "unembed.": "unembed.old_unembed."}
    weights = convert.convert_llama_weights(hf, config)
    for old, new in moved.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    model.load_state_dict(weights, strict=False)
    # saelab takes latents at the first position where a run says so; here everywhere.
    model.zero_positions = slice(0, 0)
    return model


def compare(out: Path) -> None:
    """Compute saelab's graph of the same token, and say how far its edges are off."""
    found = np.load(out / "graph.npz")
    graph = _graph(out, int(found["target"]))
    ends = zip(graph.source.tolist(), graph.target.tolist(), graph.weight.tolist(), strict=True)
    ours = {
        (_key(graph.nodes[end]), _key(graph.nodes[source])): weight
        for source, end, weight in ends
        if graph.nodes[source].kind in KINDS
    }
    # saelab has no node without a way to the target.
    theirs = _edges(found, {_key(node) for node in graph.nodes if node.kind in KINDS})
    apart = [abs(ours.get(edge, 0.0) - theirs.get(edge, 0.0)) for edge in ours | theirs]
    largest = max(map(abs, theirs.values()))
    _say(
        f"{len(found['active'])} latents, {len(theirs)} edges of circuit-tracer's, {len(ours)} of "
        f"saelab's; they differ by {max(apart):.1e} at most, where the largest is {largest:.2f}"
    )
    if max(apart) > 1e-4:
        raise SystemExit("More than 1e-4: the two graphs are not the same.")


def _graph(out: Path, token: int) -> "AttributionGraph":
    from saelab.analysis.circuits.frozen import freeze
    from saelab.analysis.circuits.graph import GraphOptions, attribution_graph
    from saelab.analysis.circuits.targets import logit_target
    from saelab.host.host import Host
    from saelab.lm.load import load_language_model
    from saelab.sae.interop.circuit_tracer import read_circuit_tracer
    from saelab.sae.interop.convert import from_foreign

    lm, hosts = load_language_model(str(out / "model"), device="cpu"), []
    for layer in range(LAYERS):
        foreign = read_circuit_tracer(out / f"transcoders/layer_{layer}.safetensors")
        sae = from_foreign(foreign).eval().requires_grad_(requires_grad=False)
        hosts.append(Host(lm, sae, str(foreign.hook), str(foreign.hook_out), str(layer)))
    frozen = freeze(lm, hosts, torch.tensor(TOKENS))
    options = GraphOptions(max_nodes=10**6, stop_share=1, precision="float64")
    words = tuple(map(str, TOKENS))
    return attribution_graph(frozen, logit_target(frozen, token), words, options)


def _key(node: "Node") -> Key:
    layer = -1 if node.kind in ("embedding", "target") else node.layer
    return KINDS[node.kind], layer, node.position or 0, node.latent or 0


def _edges(found: Mapping[str, np.ndarray], there: set[Key]) -> dict[tuple[Key, Key], float]:
    """circuit-tracer's edges between these nodes, in the order of its rows."""
    places = [(2, layer, at, latent) for layer, at, latent in found["active"].tolist()]
    places += [(0, layer, at, 0) for layer in range(LAYERS) for at in range(len(TOKENS))]
    places += [(1, -1, at, 0) for at in range(len(TOKENS))] + [(3, -1, len(TOKENS) - 1, 0)]
    ends, sources = found["edges"].nonzero()
    return {
        (places[end], places[source]): float(found["edges"][end, source])
        for end, source in zip(ends.tolist(), sources.tolist(), strict=True)
        if {places[end], places[source]} <= there
    }


def _say(text: str) -> None:
    print(text)  # noqa: T201


if __name__ == "__main__":
    what, where = sys.argv[1:]
    Path(where).mkdir(parents=True, exist_ok=True)
    {"make": make, "trace": trace, "compare": compare}[what](Path(where))
