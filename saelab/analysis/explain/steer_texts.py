"""Writing texts with a latent turned up, to explain and to judge what it does.

The prompts are beginnings of texts of features.h5, the same for all latents, and so are the random
numbers: all differences come from steering. A latent is added with its own largest activation times
the first of STRENGTHS that moves the next token's distribution by ENOUGH nats on average, from the
prompt's last token on. Texts are kept in the run, as a judge's questions must be the same after an
interruption.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.explain.evidence import LONGEST_TEXT, evidence_of
from saelab.analysis.explain.records import DIRECTORY
from saelab.analysis.explain.steered import NAME, SteeredTexts, read_steered, write_steered
from saelab.analysis.plans import steering_plan
from saelab.analysis.records import Features
from saelab.analysis.steering.edits import with_maxima
from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.writing import Sampling, edits_for, generate, plain
from saelab.console import progress, visible
from saelab.host.host import Host
from saelab.lm.load import load_recorded_model
from saelab.lm.protocol import LanguageModel
from saelab.lock import check_held
from saelab.sae.decoder import check_decoder
from saelab.training.run import Run

N_PROMPTS, PROMPT_TOKENS = 12, 8
STRENGTHS = (1.0, 2.0, 4.0, 8.0)
ENOUGH = 1.0
"""Nats of KL(plain || steered) at the token after the prompt, mean over prompts."""
SAMPLING = Sampling(n_tokens=24, temperature=0.7)
LATENTS_AT_ONCE = 8


def steered_texts(
    run: Run, features: Features, latents: Iterable[int], *, model: str | None, device: str
) -> SteeredTexts:
    """The texts of these latents, of which those that the run lacks are written now.

    Hold the run's lock. The language model is loaded only if something is missing; `model` says
    where it is now, if not at its old place. Latents that never fire are left out.

    Raises:
        UsageError: the SAE has no decoder rows to steer with, its run no language model, or the
            texts of the run are damaged.
    """
    check_decoder(run.config.sae)
    path = run.path / DIRECTORY / NAME
    digest = str(features.file.facts.get("sae_sha256"))
    found = new = SteeredTexts(digest, SAMPLING.model_dump(mode="json"))
    if path.exists():
        there = read_steered(path)
        same = (there.sae_sha256, there.sampling) == (digest, new.sampling)
        found = there if same else new
    missing = [n for n in dict.fromkeys(latents) if n not in found.by_latent and features.fired(n)]
    if missing:
        lm = load_recorded_model(run.model(), name=model, device=device)
        _write_more(with_maxima(Host.of_run(run, lm)), features, found, missing, path)
    return found


@torch.no_grad()
def _write_more(
    host: Host, features: Features, found: SteeredTexts, latents: Sequence[int], path: Path
) -> None:
    prompts = torch.as_tensor(_prompts(features, host.lm), device=host.lm.device)
    n, n_prompt = prompts.shape
    rows = n * min(len(latents), LATENTS_AT_ONCE)
    passes = (SAMPLING.n_tokens + len(STRENGTHS)) * len(latents) / LATENTS_AT_ONCE
    steering_plan(
        host.lm, prompts[:1].expand(rows, -1), passes, n_prompt + SAMPLING.n_tokens
    ).announce()
    if not found.prompts:
        found.prompts = [text_of(host.lm, row) for row in prompts]
        found.plain = [text_of(host.lm, row) for row in generate(host.lm, prompts, SAMPLING, plain)]
    base = host.lm.run(prompts).behind().logits().float().log_softmax(-1)
    try:
        with progress("Steered texts", len(latents), "latents") as bar:
            for start in range(0, len(latents), LATENTS_AT_ONCE):
                part = latents[start : start + LATENTS_AT_ONCE]
                chosen = [_change(host, prompts, base, features, latent) for latent in part]
                changes = [change for change, _ in chosen for _ in range(n)]
                new = generate(
                    host.lm,
                    prompts.repeat(len(part), 1),
                    SAMPLING,
                    edits_for(host, changes, n_prompt),
                    list(range(n)) * len(part),
                )
                for i, latent in enumerate(part):
                    texts = [text_of(host.lm, row) for row in new[i * n : (i + 1) * n]]
                    change, kl = chosen[i]
                    found.by_latent[latent] = (change.amount, kl, texts)
                bar.advance(len(part))
    finally:
        # Whatever ended it, texts that are there are not written again.
        if found.by_latent:
            check_held(path.parents[1])
            write_steered(path, found)


def _prompts(features: Features, lm: LanguageModel) -> Int[np.ndarray, "prompt pos"]:
    """The first tokens of N_PROMPTS texts that stand far apart; the same for all latents."""
    lines = features.file["corpus/tokens"]
    long = [line[:PROMPT_TOKENS] for line in lines if (line[:PROMPT_TOKENS] >= 0).all()]
    different = np.unique(np.array(long, dtype=np.int64).reshape(-1, PROMPT_TOKENS), axis=0)
    bos = lm.info.bos_token_id
    if bos is not None and not (different[:, 0] == bos).all():
        different = np.pad(different, ((0, 0), (1, 0)), constant_values=bos)
    step = max(1, len(different) // N_PROMPTS)
    return different[::step][:N_PROMPTS]


def _change(
    host: Host,
    prompts: Int[Tensor, "prompt pos"],
    base: Float[Tensor, "prompt d_vocab"],
    features: Features,
    latent: int,
) -> tuple[Intervention, float]:
    """The weakest of the changes that moves the next token enough, and by how much it does."""
    sign = evidence_of(features[latent]).sign
    changes = [
        Intervention(latents=(latent,), op="add", amount=sign * strength, unit="latent_max")
        for strength in STRENGTHS
    ]
    tokens = prompts.repeat(len(changes), 1)
    each = [change for change in changes for _ in prompts]
    edits = edits_for(host, each, prompts.shape[1])
    steered = host.lm.run(tokens, edits=edits(tokens)).behind().logits().float().log_softmax(-1)
    kl = (base.exp() * (base - steered.reshape(len(changes), *base.shape))).sum(-1).mean(1).tolist()
    first = next((i for i, value in enumerate(kl) if value >= ENOUGH), len(changes) - 1)
    return changes[first], kl[first]


def text_of(lm: LanguageModel, tokens: Int[Tensor, " pos"]) -> str:
    """What the model wrote, on one line, without special tokens and what cannot be seen."""
    special = set(lm.info.special_token_ids)
    ids = [token for token in tokens.tolist() if token not in special]
    text = lm.tokenizer.table.text(ids)
    return "".join(c if c == " " else visible(c) for c in text)[:LONGEST_TEXT]
