"""What a vocabulary of 80,000 words makes of memory: everything that asks for predictions.

    python memory_probe.py DIRECTORY

Prints as JSON the peak resident MB of the process so far, after each use of a random model with
hardly any layers. All logits of the batch at once would be 655 MB a copy.
"""

import json
import resource
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models

from saelab.evaluation.ablation import AblationTokens
from saelab.evaluation.downstream import Downstream
from saelab.evaluation.uniformity import centred_logit_gradients
from saelab.host.text import TextBatch
from saelab.lm.edits import replace_rows
from saelab.lm.load import load_language_model
from saelab.sae.topk import TopKConfig
from saelab.training.objectives import kl_plain_spliced

N_WORDS, CONTEXTS, LENGTH = 80_000, 32, 64
HOOK = "blocks.0.hook_resid_post"


def model(directory):
    words = Tokenizer(models.WordLevel({str(i): i for i in range(N_WORDS)}, unk_token="0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)
    config = transformers.LlamaConfig(
        vocab_size=N_WORDS, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=1, tie_word_embeddings=True, max_position_embeddings=LENGTH,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return load_language_model(str(directory), device="cpu")


def downstream(lm, tokens, mask, x_hat):
    found = Downstream(lm.device)
    found.update(lm, HOOK, tokens, mask, x_hat)
    return found.results()


def end_to_end(lm, tokens, mask, x_hat):
    leaf = x_hat.clone().requires_grad_()
    spliced = lm.run(tokens, edits={HOOK: replace_rows(mask, leaf)}).at(mask)
    kl_plain_spliced(lm.run(tokens).at(mask), spliced).backward()
    assert leaf.grad is not None
    return float(leaf.grad.norm())


def gradients(lm, tokens, mask, x_hat):
    return float(lm.gradients(tokens, [HOOK], mask)[1][HOOK].norm())


def uniformity(lm, tokens, mask, x_hat):
    place = torch.arange(len(tokens))
    return float(centred_logit_gradients(lm, HOOK, tokens, place)[1].norm())


def ablation(lm, tokens, mask, x_hat):
    sae = TopKConfig(d_sae=64, k=8).build(32, torch.Generator().manual_seed(0)).eval()
    found = AblationTokens(lm, sae, HOOK, n_latents=6, reach=16)
    batch = TextBatch(0, None, tokens, mask, x_hat)  # pyrefly: ignore[bad-argument-type]
    found.update(batch, n_tokens=2, draw=torch.Generator().manual_seed(0))
    return found.n_tokens


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(directory):
    lm = model(directory)
    tokens = torch.randint(1, N_WORDS, (CONTEXTS, LENGTH))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    x_hat = lm.capture(tokens, [HOOK])[HOOK][mask] * 0.9
    found: list[tuple[str, float, object]] = [("loaded", peak_mb(), None)]
    for use in (downstream, end_to_end, gradients, uniformity, ablation):
        value = use(lm, tokens, mask, x_hat)
        found.append((use.__name__, peak_mb(), value))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]))))
