"""Which parts of saelab work with a model, proven on the model itself.

Each check is an identity that holds for every causal language model: the bridge against
transformers' hidden states, the residual stream against its parts, the model against itself. If a
model lacks something, or saelab refuses something, a sentence says so; this is no failure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.bridge import BridgeLanguageModel
from saelab.lm.checkpoint import read_checkpoint
from saelab.lm.direct_check import added_by, direct_path_error, direct_path_tolerance, is_half
from saelab.lm.load import load_language_model, resolve_device
from saelab.lm.protocol import Edit
from saelab.sites import Site

SITES = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "attn.hook_z",
    "hook_attn_out",
    "mlp.hook_post",
    "hook_mlp_out",
)
N_TOKENS = 12
TOLERANCE = 1e-3
"""Relative to the size of the compared values: above rounding, below the error of a wrong
formula."""
HALF_PRECISION_TOLERANCE = 0.1


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        about: the site, or "model".
        check: what was checked.
        error: relative error; None if there was nothing to check.
        tolerance: the largest allowed error.
        refusal: why there was nothing to check, as a sentence.
    """

    about: str
    check: str
    error: float | None
    tolerance: float
    refusal: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the check ran and passed."""
        return self.error is not None and self.error <= self.tolerance

    @property
    def fails(self) -> bool:
        """Whether the check ran and failed."""
        return self.error is not None and not self.error <= self.tolerance


@dataclass(frozen=True)
class PlainPass:
    """The output of transformers alone for some tokens."""

    tokens: Int[Tensor, "batch pos"]
    hidden_states: tuple[Float[Tensor, "batch pos d_model"], ...]
    logits: Float[Tensor, "batch pos d_vocab"]


def plain_pass(name: str, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> PlainPass:
    """One forward pass of the model as transformers loads it; the model is released afterwards.

    Raises:
        UsageError: as for `read_checkpoint`.
    """
    model, _ = read_checkpoint(name, dtype=dtype, attention="eager")
    model = model.to(resolve_device(device)).eval()
    n_vocab = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(n_vocab, (2, N_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(tokens.to(model.device), output_hidden_states=True, use_cache=False)
    return PlainPass(tokens, tuple(h.cpu() for h in out.hidden_states), out.logits.cpu())


def check_model(
    name: str, *, device: str = "auto", dtype: torch.dtype = torch.float32
) -> tuple[BridgeLanguageModel, list[Finding]]:
    """The findings for the model called `name`: as a whole, and at each kind of site.

    Sites of the first, the middle and the last layer are checked.

    Raises:
        UsageError: the model does not exist.
    """
    plain = plain_pass(name, device=device, dtype=dtype)
    lm = load_language_model(name, device=device, dtype=dtype)
    return lm, [*model_findings(lm, plain), *site_findings(lm, plain.tokens)]


def model_findings(lm: BridgeLanguageModel, plain: PlainPass) -> Iterator[Finding]:
    """The checks of the model as a whole."""
    tolerance = _tolerance(lm)

    def finding(check: str, measure: Callable[[], float]) -> Finding:
        return _finding("model", check, measure, tolerance)

    yield finding("logits are transformers'", lambda: _off(lm.logits(plain.tokens), plain.logits))
    yield finding("hidden states are transformers'", lambda: _hidden_error(lm, plain))
    yield finding("blocks add up to the residual", lambda: _parts_error(lm, plain.tokens))
    yield finding("no token sees later ones", lambda: _causal_error(lm, plain.tokens))
    yield finding("steering with a cache is as without", lambda: _cache_error(lm, plain.tokens))


def site_findings(lm: BridgeLanguageModel, tokens: Int[Tensor, "batch pos"]) -> Iterator[Finding]:
    """Checks of reading, splicing and logit effects at every kind of site."""
    layers = sorted({0, lm.info.n_layers // 2, lm.info.n_layers - 1})
    groups = {site: [f"blocks.{layer}.{site}" for layer in layers] for site in SITES}
    plain, seen = lm.direct.one_pass(
        tokens, {}, [hook for group in groups.values() for hook in group]
    )
    for site, hooks in groups.items():
        yield _finding(site, "reads", partial(_reading_error, lm, seen, tokens, hooks), 0.0)
        splice = partial(_splice_error, lm, tokens, {h: seen.get(h) for h in hooks}, plain)
        yield _finding(site, "splices", splice, _tolerance(lm))
        effects = partial(_effects_error, lm, hooks)
        yield _finding(site, "logit effects", effects, direct_path_tolerance(lm))


def _finding(about: str, check: str, measure: Callable[[], float], tolerance: float) -> Finding:
    try:
        error = measure()
    except UsageError as refusal:
        return Finding(about, check, None, tolerance, str(refusal))
    return Finding(about, check, error, tolerance)


def _tolerance(lm: BridgeLanguageModel) -> float:
    return HALF_PRECISION_TOLERANCE if is_half(lm) else TOLERANCE


def _off(found: Tensor, expected: Tensor) -> float:
    """The largest error of a row, relative to the row's size; NaN counts as infinite."""
    found, expected = (x.detach().to("cpu", torch.float64) for x in (found, expected))
    worst = ((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)).max()
    return float(torch.nan_to_num(worst, nan=torch.inf))


def _hidden_error(lm: BridgeLanguageModel, plain: PlainPass) -> float:
    """Error against hook_resid_pre, or hook_resid_post where transformers omits the embedding."""
    layers = range(lm.info.n_layers)
    ends = [[f"blocks.{i}.hook_resid_{side}" for i in layers] for side in ("pre", "post")]
    seen = lm.capture(plain.tokens, [*ends[0], *ends[1], "unembed.hook_in"])
    *stream, last = plain.hidden_states
    errors = [
        max(_off(seen[hook], state) for hook, state in zip(hooks, stream, strict=True))
        for hooks in ends
    ]
    return max(min(errors), _off(seen["unembed.hook_in"], last))


def _parts_error(lm: BridgeLanguageModel, tokens: Tensor) -> float:
    added = added_by(lm)
    ends = [f"blocks.{i}.hook_resid_{s}" for i in range(lm.info.n_layers) for s in ("pre", "post")]
    _, seen = lm.direct.one_pass(tokens, {}, [*added, *ends])
    errors = []
    for layer in range(lm.info.n_layers):
        at = f"blocks.{layer}."
        parts = [seen[hook] for hook in added if Site.of(hook).layer == layer and hook in seen]
        total = sum(parts, start=seen[f"{at}hook_resid_pre"])
        errors.append(_off(total, seen[f"{at}hook_resid_post"]))
    return max(errors)


def _causal_error(lm: BridgeLanguageModel, tokens: Tensor) -> float:
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % lm.info.d_vocab
    return _off(lm.logits(other)[:, :-1], lm.logits(tokens)[:, :-1])


def _cache_error(lm: BridgeLanguageModel, tokens: Tensor) -> float:
    if not lm.reads_on:
        raise UsageError(f"{lm.info.name} keeps no keys and values; steering reads all text anew.")
    hook = f"blocks.{lm.info.n_layers // 2}.hook_resid_pre"
    size = lm.capture(tokens, [hook])[hook].std()
    push = size * torch.randn(lm.info.d_model, generator=torch.Generator().manual_seed(0))
    edits = {hook: lambda x: x + push.to(x)}
    past, read = None, []
    for piece in tokens.split(N_TOKENS // 3, dim=1):
        out, past = lm.read_on(piece, past, edits)
        read.append(out.logits)
    return _off(torch.cat(read, dim=1), lm.logits(tokens, edits))


def _reading_error(
    lm: BridgeLanguageModel, seen: Mapping[str, Tensor], tokens: Tensor, hooks: Sequence[str]
) -> float:
    """Error if a value is not finite, a width is wrong, or capturing the site alone differs."""
    found = lm.capture(tokens, hooks)
    right = all(
        value.shape == (*tokens.shape, lm.width(hook))
        and bool(value.isfinite().all())
        and torch.equal(value, seen[hook])
        for hook, value in found.items()
    )
    return 0.0 if right else torch.inf


def _splice_error(
    lm: BridgeLanguageModel,
    tokens: Tensor,
    originals: Mapping[str, Tensor | None],
    plain: Float[Tensor, "batch pos d_vocab"],
) -> float:
    """Error after splicing in the originals; and whether other values there have any effect."""
    edits: dict[str, Edit] = {h: lambda x, v=v: x if v is None else v for h, v in originals.items()}
    spliced = lm.logits(tokens, edits)
    for hook in originals:
        if torch.equal(lm.logits(tokens, {hook: lambda x: x.flip(0) + 1}), plain):
            return torch.inf
    return _off(spliced, plain)


def _effects_error(lm: BridgeLanguageModel, hooks: Sequence[str]) -> float:
    lm.capture(torch.zeros(1, 1, dtype=torch.long), hooks)
    for hook in hooks:
        if (fault := lm.direct.fault(hook)) is not None:
            raise UsageError(f"{hook} has no logits in {lm.info.name}: {fault}.")
    return max(direct_path_error(lm, hook) for hook in hooks)


def failures(findings: Sequence[Finding]) -> list[Finding]:
    """The checks that failed."""
    return [finding for finding in findings if finding.fails]
