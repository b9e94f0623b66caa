"""The neutral form of a foreign SAE with one affine encoder, in saelab's layout."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.formats.mapped import all_finite
from saelab.pursuit.matching_pursuit import matching_pursuit, merged
from saelab.sae.affine import HALVES, products
from saelab.sae.interop.stated import TrainedOn, check_names, check_prefixes
from saelab.sae.row_norm import RowNorm, row_scale


@dataclass(frozen=True, eq=False)
class Gate:
    """The additional weights of a gated SAE (arXiv 2404.16014).

    With u = (x - b_dec) @ W_enc, the codes are z = ReLU(exp(r_mag) u + b_enc) where u + b_gate > 0,
    else 0.
    """

    r_mag: Float[Tensor, "..."]
    b_gate: Float[Tensor, "..."]


@dataclass(frozen=True, eq=False, kw_only=True)
class ForeignSAE:
    """An SAE read from another tool's file, on the CPU, in the model's own scale.

    It is float32; W_enc and W_dec may have 16 bits, and are widened where they are used or changed.

    a = (x - b_dec) @ W_enc + b_enc, or x @ W_enc + b_enc where `subtract_b_dec` is false. With
    `threshold`, z = ReLU(a) where a > threshold and 0 elsewhere. With `k`, z is the k largest
    entries of each row of a, rectified; or, where `signed`, the k of largest magnitude, signs kept.
    With `gate`, z is as `Gate` says. With `steps`, z is what so many steps of matching pursuit in
    the decoder's atoms find (arXiv 2506.03093), and W_enc is W_dec^T. Exactly one of the four is
    given. x_hat = z @ W_dec + b_dec, plus x @ W_skip if `W_skip` is given. With `row_norm`, x is
    the normalised row, and x_hat is scaled back (`saelab.sae.row_norm`).

    Raises:
        UsageError: shapes disagree, a number is not finite, or the fields contradict each other.

    Attributes:
        W_enc: `[d_in d_sae]`, the encoder.
        W_dec: `[d_sae d_out]`, the decoder; its rows need not be unit vectors.
        b_enc: `[d_sae]`, bias of the latents.
        b_dec: `[d_out]`, bias of the reconstruction.
        threshold: `[d_sae]`, JumpReLU's (arXiv 2407.14435), >= 0; zeros for a plain ReLU.
        k: latents kept in each row.
        gate: the gate of a gated SAE.
        steps: steps of a matching pursuit.
        signed: whether codes keep their signs (arXiv 2510.00404).
        subtract_b_dec: whether the encoder reads x - b_dec.
        prefixes: Matryoshka widths, increasing, the last d_sae (arXiv 2503.17547).
        batch_k: latents per row that BatchTopK training kept on average; inference ignores it.
        hook: TransformerLens name of what the SAE reads, if the file says.
        transcoder: whether it reconstructs other activations than it reads; else d_out is d_in.
        W_skip: `[d_in d_out]`, a transcoder's skip connection.
        hook_out: TransformerLens name of what a transcoder reconstructs, if the file says.
        row_norm: how rows are normalised before the SAE reads them.
        unscaled: whether the SAE reads rows times sqrt(d_in) / (their mean norm), where the file
            does not say that norm; `for_rows_of_norm` folds it.
        model: the language model, if the file says.
        source: which tool wrote the file, and which of its architectures.
        note: what somebody who uses the SAE must know; one sentence.
        text: how its text was cut, if known; written for tools that ask.
    """

    # Any shape is accepted here, since a file may hold any; __post_init__ refuses with a sentence.
    W_enc: Float[Tensor, "..."]
    W_dec: Float[Tensor, "..."]
    b_enc: Float[Tensor, "..."]
    b_dec: Float[Tensor, "..."]
    threshold: Float[Tensor, "..."] | None = None
    k: int | None = None
    gate: Gate | None = None
    steps: int | None = None
    signed: bool = False
    subtract_b_dec: bool
    prefixes: tuple[int, ...] | None = None
    batch_k: float | int | None = None
    hook: str | None = None
    transcoder: bool = False
    W_skip: Float[Tensor, "..."] | None = None
    hook_out: str | None = None
    row_norm: RowNorm | None = None
    unscaled: bool = False
    model: str | None = None
    source: str
    note: str = ""
    text: TrainedOn | None = None

    def __post_init__(self) -> None:
        _check_transcoder(self)
        _check_tensors(self)
        _check_selection(self)
        if self.row_norm is not None and self.transcoder:
            raise UsageError(
                f"{self.source}: a transcoder cannot undo {self.row_norm} of its rows."
            )
        check_prefixes(self.source, self.prefixes, self.d_sae)
        check_names(self.source, (self.hook, self.hook_out), self.model)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def encode_dense(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """The codes of each row as a dense tensor, as the other tool's `encode` gives them."""
        x = x if self.row_norm is None else row_scale(self.row_norm, x).normalised(x)
        x = x - self.b_dec if self.subtract_b_dec else x
        if self.steps is not None:
            atoms = self.W_dec.to(x.dtype)
            return merged(matching_pursuit(x, atoms, self.steps), self.d_sae).dense()
        sums = products(x, self.W_enc, x.dtype)
        pre_acts = sums * self._rise + self.b_enc
        if self.gate is not None:
            return pre_acts.relu() * (sums + self.gate.b_gate > 0)
        if self.threshold is not None:
            return pre_acts.relu() * (pre_acts > self.threshold)
        assert self.k is not None, "__post_init__ asks for one of them"
        ranked = pre_acts.abs() if self.signed else pre_acts
        chosen = ranked.topk(self.k, dim=1).indices
        values = pre_acts.gather(1, chosen)
        return torch.zeros_like(pre_acts).scatter(
            1, chosen, values if self.signed else values.relu()
        )

    def reconstruct(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """x_hat of each row."""
        x_hat = self.encode_dense(x) @ self.W_dec.to(x.dtype) + self.b_dec
        if self.row_norm is not None:
            return row_scale(self.row_norm, x).undone(x_hat)
        return x_hat if self.W_skip is None else x_hat + x @ self.W_skip

    def with_codes_times(self, factor: Float[Tensor, " d_sae"]) -> "ForeignSAE":
        """The SAE whose code j is multiplied, and whose atom j is divided, by `factor[j]` > 0.

        Thresholds are scaled with the codes, so reconstructions stay the same; with `k`, latents
        are ranked by the new codes.
        """
        gate = self.gate
        return replace(
            self,
            W_enc=self.W_enc.float() * factor if gate is None else self.W_enc,
            b_enc=self.b_enc * factor,
            W_dec=self.W_dec.float() / factor[:, None],
            threshold=None if self.threshold is None else self.threshold * factor,
            gate=None if gate is None else Gate(gate.r_mag + factor.log(), gate.b_gate),
        )

    def with_norms_in_codes(self) -> "ForeignSAE":
        """The same SAE with unit atoms; codes carry the old norms, and a zero atom stays zero."""
        return self.with_codes_times(self.W_dec.float().norm(dim=1).clamp_min(1e-8))

    def for_inputs_times(self, scale: float) -> "ForeignSAE":
        """The SAE that does to x what this one does to `scale * x`, with the same codes."""
        return replace(
            self,
            W_enc=self.W_enc.float() * scale,
            W_dec=self.W_dec.float() / scale,
            b_dec=self.b_dec / scale,
        )

    def for_rows_of_norm(self, norm: float) -> "ForeignSAE":
        """An `unscaled` SAE, with the constant folded that rows of this mean norm give."""
        return replace(self.for_inputs_times(self.d_in**0.5 / norm), unscaled=False)

    def read_of(self, x: Float[Tensor, " d_in"]) -> Float[Tensor, " d_sae"]:
        """X @ W_enc of one row."""
        return products(x[None], self.W_enc, torch.float32)[0]

    def with_matrices_of(self, dtype: torch.dtype) -> "ForeignSAE":
        """The SAE with W_enc and W_dec rounded, or widened, to this dtype."""
        return replace(self, W_enc=self.W_enc.to(dtype), W_dec=self.W_dec.to(dtype))

    def with_products_plus(self, shift: Float[Tensor, " d_sae"]) -> "ForeignSAE":
        """The SAE whose codes are those of this one with `shift` added to x @ W_enc."""
        gate = self.gate
        return replace(
            self,
            b_enc=self.b_enc + shift * self._rise,
            gate=None if gate is None else Gate(gate.r_mag, gate.b_gate + shift),
        )

    def reading(self, *, less_b_dec: bool) -> "ForeignSAE":
        """The same SAE with an encoder that reads x - b_dec, or one that reads x."""
        if self.subtract_b_dec == less_b_dec:
            return self
        # x @ W + b = (x - b_dec) @ W + (b + b_dec @ W).
        shift = self.read_of(self.b_dec)
        shifted = self.with_products_plus(shift if less_b_dec else -shift)
        return replace(shifted, subtract_b_dec=less_b_dec)

    @property
    def has_one_threshold(self) -> bool:
        """Whether all latents share a threshold, and the encoder reads x - b_dec."""
        threshold = self.threshold
        if threshold is None or not self.subtract_b_dec:
            return False
        return bool((threshold == threshold[0]).all())

    @property
    def _rise(self) -> float | Float[Tensor, " d_sae"]:
        """By how much a code grows per unit of its row times W_enc."""
        return 1.0 if self.gate is None else self.gate.r_mag.exp()


def _check_tensors(sae: ForeignSAE) -> None:
    if sae.W_enc.ndim != 2 or sae.W_enc.numel() == 0:
        raise UsageError(
            f"{sae.source}: W_enc has shape {list(sae.W_enc.shape)}, "
            "but [d_in, d_sae] with both at least 1 is needed."
        )
    for name, shape in _shapes(sae).items():
        tensor: Tensor | None = getattr(sae, name, getattr(sae.gate, name, None))
        if tensor is None:
            continue
        if list(tensor.shape) != shape:
            raise UsageError(
                f"{sae.source}: {name} has shape {list(tensor.shape)}, "
                f"but {shape} fits W_enc of shape {list(sae.W_enc.shape)}."
            )
        narrow = name in ("W_enc", "W_dec") and tensor.dtype in HALVES
        if (tensor.dtype != torch.float32 and not narrow) or tensor.device.type != "cpu":
            raise UsageError(
                f"{sae.source}: {name} is {tensor.dtype} on {tensor.device}, "
                "but torch.float32 on the CPU is needed."
            )
        if not all_finite(tensor):
            raise UsageError(f"{sae.source}: {name} holds NaN or infinite values.")
    if sae.threshold is not None and bool((sae.threshold < 0).any()):
        lowest = float(sae.threshold.min())
        raise UsageError(f"{sae.source}: a threshold is {lowest:g}, but 0 is the least allowed.")


def _shapes(sae: ForeignSAE) -> dict[str, list[int]]:
    """The required shape of each tensor, given W_enc; a transcoder has its own d_out."""
    d_in, d_sae = sae.W_enc.shape
    d_out = sae.W_dec.shape[-1] if sae.transcoder and sae.W_dec.ndim else d_in
    return {
        "W_enc": [d_in, d_sae],
        "W_dec": [d_sae, d_out],
        "b_enc": [d_sae],
        "b_dec": [d_out],
        "threshold": [d_sae],
        "r_mag": [d_sae],
        "b_gate": [d_sae],
        "W_skip": [d_in, d_out],
    }


def _check_transcoder(sae: ForeignSAE) -> None:
    if sae.transcoder and sae.subtract_b_dec:
        raise UsageError(f"{sae.source}: a transcoder's input has no place for b_dec.")
    if sae.W_skip is not None and not sae.transcoder:
        raise UsageError(f"{sae.source}: only a transcoder has a skip connection.")


def _check_selection(sae: ForeignSAE) -> None:
    rules = {"k": sae.k, "threshold": sae.threshold, "gate": sae.gate, "steps": sae.steps}
    given = [name for name, rule in rules.items() if rule is not None]
    if len(given) != 1:
        raise UsageError(
            f"{sae.source}: {' and '.join(given) or 'none'} of k, threshold, gate and steps given, "
            "but exactly one selects the latents."
        )
    for name, k in {"k": sae.k, "steps": sae.steps}.items():
        if k is not None and not 1 <= k <= sae.d_sae:
            raise UsageError(f"{sae.source}: {name}={k} is not within 1 and d_sae={sae.d_sae}.")
    if sae.signed and sae.k is None:
        raise UsageError(f"{sae.source}: signed codes are selected by k, but none is given.")
    if sae.batch_k is not None and not 0 < sae.batch_k <= sae.d_sae:
        raise UsageError(
            f"{sae.source}: a mean k of {sae.batch_k:g} is not within 0 and d_sae={sae.d_sae}."
        )
