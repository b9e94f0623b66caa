"""Circuits of latents (arXiv 2403.19647): few of them keep a prediction, as many neurons do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.circuits.ablation import Faithfulness
from saelab.analysis.circuits.edits import Members
from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.circuits.live import GradientCircuit, gradient_circuit
from saelab.analysis.circuits.targets import logit_target
from saelab.claims.claim import Claim
from saelab.claims.outcome import RANDOM_DIRECTIONS, RANDOM_LATENTS, Outcome, over_seeds
from saelab.claims.setting import Setting
from saelab.host.host import Host
from saelab.kernels import sparse_decode
from saelab.lm.prompt import encode_prompt
from saelab.lm.protocol import Edit, LanguageModel
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.training.recipes import adaptive_counts, steering_filter

TEMPLATE = "when {a} and {b} went to the garden , {a} sent a lamp to"
NAMES = (("tina", "sonia"), ("rita", "nancy"), ("ursula", "penny"), ("olivia", "tina"))
N_MEMBERS = 40
N_DRAWS = 5


@dataclass(frozen=True)
class _Kept:
    """Faithfulness: the share of a logit difference that a set keeps; sets have one size."""

    latents: float
    channels: float
    random_latents: float
    random_directions: float


def _measure(setting: Setting) -> Outcome:
    """Prompts on which the model must name the person who did not give.

    The logit difference of the two names is kept by 40 latents of two SAEs, each at its position,
    chosen by integrated gradients; by as many channels of the same two sites; by as many latents
    drawn from those that fire; and by a random subspace of as many dimensions at each position.
    """
    subject = setting.subject
    lm, store = subject.lm, subject.store()
    recipe = {
        "residual": steering_filter(store)["topk"],
        "heads": adaptive_counts(store, subject.sites.heads)["topk"],
    }
    runs = setting.runs(recipe)
    found: list[_Kept] = []
    for seed in setting.seeds:
        hosts = [Host.of_run(runs[name][seed], lm) for name in recipe]
        kept = [_kept(lm, hosts, *names, seed) for names in NAMES]
        found.append(
            _Kept(*(float(torch.tensor([vars(k)[f] for k in kept]).mean()) for f in FIELDS))
        )
    latents, channels, random_latents, random_directions = (
        over_seeds([getattr(one, name) for one in found]) for name in FIELDS
    )
    return Outcome(
        figures={
            f"logit difference kept by {N_MEMBERS} latents": latents,
            "by as many channels of the same sites": channels,
        },
        holds={
            "few latents keep most of it": latents.above(0.5),
            "as many channels keep less": channels.high < latents.low,
            "as many random latents keep less": random_latents.high < latents.low,
            "a random subspace of as many dimensions keeps less": random_directions.high
            < latents.low,
        },
        controls={RANDOM_DIRECTIONS: random_directions, RANDOM_LATENTS: random_latents},
    )


FIELDS = tuple(_Kept.__dataclass_fields__)


def _kept(lm: LanguageModel, hosts: Sequence[Host], a: str, b: str, seed: int) -> _Kept:
    tokens = encode_prompt(lm, TEMPLATE.format(a=a, b=b))
    answer, other = (lm.tokenizer.encode(name)[0] for name in (b, a))
    circuit = _circuit(lm, hosts, tokens, answer, other)
    channels = _circuit(lm, [_channels(lm, host) for host in hosts], tokens, answer, other)
    judged = circuit.faithfulness
    draws = [draw.faithfulness for draw in circuit.by_chance]
    shares = [
        _random_subspace(lm, hosts, tokens, circuit.members, (answer, other), seed + 1000 * i)
        for i in range(N_DRAWS)
    ]
    return _Kept(
        judged.faithfulness,
        channels.faithfulness.faithfulness,
        sum(draws) / len(draws),
        sum(_share(judged, value) for value in shares) / len(shares),
    )


def _circuit(
    lm: LanguageModel, hosts: Sequence[Host], tokens: Int[Tensor, " pos"], answer: int, other: int
) -> GradientCircuit:
    frozen = freeze(lm, hosts, tokens)
    found = gradient_circuit(lm, hosts, frozen, logit_target(frozen, answer, other), N_MEMBERS)
    assert found is not None
    return found


def _channels(lm: LanguageModel, host: Host) -> Host:
    """The site's channels as a dictionary: every row is coded by itself."""
    d = host.sae.d_in
    sae = AbsTopKConfig(d_sae=d, k=d).build(d).to(lm.device)
    with torch.no_grad():
        for name, value in sae.state_dict().items():
            value.copy_(torch.eye(d) if name in ("W_enc", "W_dec") else torch.zeros_like(value))
    return Host.at(lm, sae, host.reads)


def _share(judged: Faithfulness, value: float) -> float:
    return (value - judged.empty) / (judged.whole - judged.empty)


@torch.no_grad()
def _random_subspace(
    lm: LanguageModel,
    hosts: Sequence[Host],
    tokens: Int[Tensor, " pos"],
    members: Members,
    target: tuple[int, int],
    seed: int,
) -> float:
    """The logit difference if of what all latents write only a random subspace is kept.

    At each position it has as many dimensions as the circuit has latents there.
    """
    generator = torch.Generator().manual_seed(seed)
    edits: dict[str, Edit] = {}
    for host in hosts:
        counts = members[host.name].expand(len(tokens), -1).sum(dim=1).tolist()
        width = host.sae.W_dec.shape[1]
        spaces = [
            torch.linalg.qr(torch.randn(width, n, generator=generator)).Q.to(lm.device)
            for n in counts
        ]
        edits[host.writes] = _subspace_edit(host, tokens, spaces)
    logits = lm.logits(tokens[None], edits)[0, -1].double()
    return float(logits[target[0]] - logits[target[1]])


def _subspace_edit(
    host: Host, tokens: Int[Tensor, " pos"], spaces: Sequence[Float[Tensor, "d n"]]
) -> Edit:
    def edit(value: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        codes, _ = host.encode(tokens[None], value, value)
        written = sparse_decode(codes, host.sae.W_dec)
        kept = torch.stack(
            [space @ (space.T @ x) for space, x in zip(spaces, written, strict=True)]
        )
        return value + (kept - written).view(value.shape).to(value.dtype)

    return edit


FEW_LATENTS = Claim(
    "circuit-latents",
    "2403.19647",
    "A circuit of few latents keeps most of a prediction; as many neurons do not.",
    "about 100 latents for what needs over 1,500 neurons (Pythia-70M; not verified)",
    "tiny, 4 indirect-object prompts, residual and heads of block 2",
    _measure,
    intervenes=True,
)
