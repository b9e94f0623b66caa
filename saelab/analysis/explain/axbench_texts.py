"""The texts that AxBench's methods write: latent, difference in means, probe, ReFT-r1, prompt.

A direction is added at every position, in units of its largest activation on the texts with the
concept; a latent's is its maximum in features.h5, times its decoder row (2501.17148; formulas as in
stanfordnlp/axbench). ReFT-r1 is learned here in fewer steps than there, and without its negative
examples. Beside them stand a random direction of the latent's size, and no steering.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.analysis.explain.axbench import (
    UNSTEERED,
    SteeredAnswer,
    SteeringTask,
    digest_of_task,
    read_task,
    write_task,
)
from saelab.analysis.explain.axbench_concepts import SteeringConcept
from saelab.analysis.explain.records import DIRECTORY
from saelab.analysis.explain.steer_texts import text_of
from saelab.analysis.plans import steering_plan
from saelab.analysis.steering.edits import with_maxima
from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.writing import Sampling, edits_for, generate
from saelab.config import UsageError
from saelab.console import note, progress
from saelab.evaluation.logistic import fit_logistic
from saelab.host.host import Host
from saelab.lm.prompt import chat_prompt, encode_prompt
from saelab.lm.protocol import Edit, LanguageModel
from saelab.lock import check_held
from saelab.sae.decoder import dtype_of
from saelab.training.run import Run

STEPS, RATE, PENALTY, TOP = 48, 0.02, 5e-3, 4
"""Of ReFT-r1: optimizer steps, learning rate, weight of L1 at the end, and its k largest."""
LONGEST_TOKENS = 96


BRING_IN = "Bring this in throughout:"
PLACE, TEXTS = "axbench", "texts.json"


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are written: strengths (see above), and the number of tokens."""

    factors: tuple[float, ...]
    n_tokens: int


@dataclass(frozen=True)
class ConceptRows:
    """Activations of some texts, token by token.

    Attributes:
        x: where the SAE writes, without special tokens.
        most: each latent's largest activation in each text.
    """

    x: Float[Tensor, "row d_out"]
    most: Float[Tensor, "text d_sae"]


def written_task(
    run: Run,
    lm: LanguageModel,
    concepts: Sequence[SteeringConcept],
    instructions: Sequence[str],
    options: AnswerOptions,
) -> SteeringTask:
    """What every method writes for every concept and instruction; kept in the run.

    Raises:
        UsageError: a concept's latent does not exist, or never fires; or the SAE cannot steer.
    """
    host = with_maxima(Host.of_run(run, lm))
    sampling = Sampling(n_tokens=options.n_tokens, temperature=1.0)
    weights = run.weights_sha256
    digest = digest_of_task(list(concepts), list(instructions), options, weights)
    path = run.path / DIRECTORY / PLACE / TEXTS
    task = SteeringTask([c.text for c in concepts], list(instructions), [], [], digest)
    if path.exists() and (there := read_task(path)).made == digest:
        task = there
    left = list(enumerate(concepts))[len(task.latents) :]
    if not left:
        return task
    try:
        prompts = [_prompt(lm, text) for text in instructions]
    except UsageError as error:
        raise UsageError(f"{error} --instructions FILE gives others, one a line.") from None
    longest = max(len(prompt) for prompt in prompts) + options.n_tokens
    rows = torch.zeros(len(options.factors) * 5 + 1, 1, dtype=torch.long, device=lm.device)
    steering_plan(lm, rows, options.n_tokens * len(prompts) * len(left), longest).announce()
    with progress("Steered texts", len(left) * len(prompts), "prompts") as bar:
        for number, concept in left:
            latent, methods = _directions(host, concept)
            for i, prompt in enumerate(prompts):
                found = list(_texts(host, prompt, methods, options.factors, sampling))
                asked = f"{instructions[i]} {BRING_IN} {concept.text}"
                found += _prompted(lm, asked, sampling, tell=not task.answers)
                task.answers += [
                    SteeredAnswer(number, method, factor, i, text) for method, factor, text in found
                ]
                bar.advance(1)
            # After each concept, so that an interruption costs one at most.
            task.latents.append(latent)
            check_held(run.path)
            write_task(path, task)
    return task


def _prompted(
    lm: LanguageModel, text: str, sampling: Sampling, *, tell: bool
) -> list[tuple[str, float, str]]:
    """The answer where the concept stands in the prompt; nothing if the model lacks its words."""
    try:
        prompt = _prompt(lm, text)
    except UsageError as error:
        if tell:
            note(f"There is no baseline by a prompt. {error}")
        return []
    new = generate(lm, prompt[None], sampling, samples=[0])
    return [("prompt", 0.0, text_of(lm, new[0]))]


def _prompt(lm: LanguageModel, text: str) -> Int[Tensor, " pos"]:
    """The instruction by the model's chat template, if it has one."""
    try:
        made = chat_prompt(lm, text)
    except UsageError:
        made = text
    return encode_prompt(lm, made)


def _directions(
    host: Host, concept: SteeringConcept
) -> tuple[int, Mapping[str, Float[Tensor, " d_out"]]]:
    """The concept's latent, and for each method what is added at factor 1."""
    there, absent = _rows(host, concept.positive), _rows(host, concept.negative)
    latent = _latent(host, concept, there, absent)
    assert host.maxima is not None
    own = host.sae.W_dec[latent].detach().float() * float(host.maxima[latent])
    generator = torch.Generator().manual_seed(latent)
    random = torch.randn(len(own), generator=generator).to(own.device)
    found = {
        "latent": own,
        "difference in means": _scaled(there.x.mean(0) - absent.x.mean(0), there.x),
        "probe": _scaled(_probe(there.x, absent.x), there.x),
        "ReFT-r1": _scaled(_reft(host, concept), there.x),
        "random direction": F.normalize(random, dim=0) * own.norm(),
    }
    dtype = dtype_of(host.sae)
    return latent, {name: direction.to(dtype) for name, direction in found.items()}


def _tokens(lm: LanguageModel, text: str) -> Int[Tensor, " pos"]:
    """The first tokens of a text, which may name <bos> as texts of features.h5 do."""
    bos = lm.info.bos_token_id
    plain = text if bos is None else text.replace(lm.tokenizer.token(bos), "").strip()
    return encode_prompt(lm, plain or text)[:LONGEST_TOKENS]


@torch.no_grad()
def _rows(host: Host, texts: Sequence[str]) -> ConceptRows:
    rows, most = [], []
    special = torch.tensor(host.lm.info.special_token_ids, dtype=torch.long)
    for text in texts:
        tokens = _tokens(host.lm, text)
        out = host.lm.run(tokens[None], hooks=host.sites)
        plain = ~torch.isin(tokens.cpu(), special)
        read = out.activations[host.reads][0][plain.to(tokens.device)]
        rows.append(out.activations[host.writes][0][plain.to(tokens.device)].float())
        codes = host.sae.encode(read.to(dtype_of(host.sae)))
        most.append(codes.dense().float().amax(0) if len(read) else host.sae.W_dec[:, 0] * 0)
    return ConceptRows(torch.cat(rows), torch.stack(most))


def _latent(host: Host, concept: SteeringConcept, there: ConceptRows, absent: ConceptRows) -> int:
    """The concept's latent, else the one of the best AUROC of its largest activation per text."""
    n = there.most.shape[1]
    if concept.latent is not None and concept.latent >= n:
        raise UsageError(f"There is no latent {concept.latent}; the SAE has 0 to {n - 1}.")
    if host.maxima is None:
        raise UsageError("Steering needs each latent's maximum; run `saelab features` first.")
    latent = concept.latent
    if latent is None:
        above = [(row > absent.most).float() + 0.5 * (row == absent.most) for row in there.most]
        auroc = torch.stack([one.mean(0) for one in above]).mean(0)
        latent = int(auroc.masked_fill(~(host.maxima > 0), -1).argmax())
    if not float(host.maxima[latent]) > 0:
        raise UsageError(
            f"Latent {latent} never fired, or no features of it were collected, so it has no "
            "strength."
        )
    return latent


def _scaled(
    direction: Float[Tensor, " d_out"], x: Float[Tensor, "row d_out"]
) -> Float[Tensor, " d_out"]:
    """The unit direction times its largest activation on these rows."""
    unit = F.normalize(direction.float(), dim=0)
    return unit * (x @ unit).amax().clamp_min(1e-3)


def _probe(
    there: Float[Tensor, "row d_out"], absent: Float[Tensor, "row2 d_out"]
) -> Float[Tensor, " d_out"]:
    """The weights of a logistic regression on tokens."""
    x = torch.cat([there, absent]).cpu()
    y = torch.arange(len(x)) < len(there)
    return fit_logistic(x[None], y[None], l2=1e-2)[0, :-1].float().to(there.device)


def _reft(host: Host, concept: SteeringConcept) -> Float[Tensor, " d_out"]:
    """ReFT-r1's direction w: with h + mean(top k of ReLU(h w)) w the model writes the concept.

    The loss is the cross-entropy of texts with it, and an L1 penalty, which grows from 0, of what
    is not among the k largest (LsReFT of stanfordnlp/axbench). w stays a unit vector.
    """
    texts = [_tokens(host.lm, text) for text in concept.positive]
    texts = [tokens for tokens in texts if len(tokens) > 1]
    start = torch.randn(host.sae.W_dec.shape[1], generator=torch.Generator().manual_seed(0))
    w = F.normalize(start, dim=0).to(host.lm.device).requires_grad_()
    optimizer = torch.optim.AdamW([w], lr=RATE)
    for step in range(STEPS if texts else 0):
        tokens = texts[step % len(texts)]
        rest: list[Tensor] = []
        with torch.enable_grad():
            out = host.lm.run(tokens[None], edits={host.writes: _reft_edit(w, rest)})
            logs = out.at(...).logits().float().log_softmax(-1)
            loss = -logs[:-1].gather(1, tokens[1:, None]).mean()
            loss = loss + PENALTY * step / STEPS * rest[0]
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            w.copy_(F.normalize(w, dim=0))
    return w.detach()


def _reft_edit(w: Tensor, rest: list[Tensor]) -> Edit:
    """The change by ReFT-r1; the sum of what is not among the k largest goes to `rest`."""

    def edit(value: Float[Tensor, "batch pos d_out"]) -> Float[Tensor, "batch pos d_out"]:
        latent = (value.float() @ w).relu()
        most = latent.topk(min(TOP, latent.shape[1]), dim=1).values
        rest[:] = [latent.sum() - most.sum()]
        return value + (most.mean(1)[:, None, None] * w).to(value.dtype)

    return edit


@torch.no_grad()
def _texts(
    host: Host,
    prompt: Int[Tensor, " pos"],
    methods: Mapping[str, Float[Tensor, " d_out"]],
    factors: Sequence[float],
    sampling: Sampling,
) -> Iterator[tuple[str, float, str]]:
    """Every method's text at every factor, and the one without steering, with the same chance."""
    rows = [(method, factor) for method in methods for factor in factors]
    places = {method: i for i, method in enumerate(methods)}
    changes = [
        Intervention(latents=(places[method],), amount=factor, unit="absolute", positions="all")
        for method, factor in [*rows, (next(iter(methods)), 0.0)]
    ]
    edits = edits_for(host, changes, len(prompt), torch.stack([*methods.values()]))
    new = generate(host.lm, prompt.expand(len(changes), -1), sampling, edits, [0] * len(changes))
    (unsteered, _) = sorted(UNSTEERED)
    for (method, factor), tokens in zip([*rows, (unsteered, 0.0)], new, strict=True):
        yield method, factor, text_of(host.lm, tokens)
