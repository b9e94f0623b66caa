"""How much of an SAE's error is its encoder's: the same rows encoded by a search for codes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.evaluation.inputs import Batch, Inputs, another_encoder
from saelab.evaluation.measurement import Line, Measurement, Streamed
from saelab.evaluation.reconstruction import Reconstruction
from saelab.evaluation.rows import active_entries
from saelab.sae.with_encoder import WithEncoder
from saelab.types import SparseCodes

FAR = 0.05
"""Share by which the L0 of an encoder may miss its target without a warning."""


@dataclass(frozen=True)
class Amortisation:
    """An SAE's own encoder and another one, with the same decoder on the same rows.

    The amortisation gap (arXiv 2411.13117) is 1 - fvu / own_fvu: the part of the SAE's error that
    is its encoder's. It is a lower bound, since no encoder here finds the best codes.

    Attributes:
        encoder: name of the other encoder.
        amount: its penalty for atoms of unit norm; None for `omp` and `mp`, which take a number of
            atoms.
        wanted_l0: the mean L0 that it was set to.
        n_tokens: rows.
        own_fvu, own_l0: of the SAE's own encoder.
        fvu, l0: of the other one.
        shared: active latents that both have, as a share of those that either has.
        better: share of the rows where the other one's error is lower.
    """

    encoder: str
    amount: float | None
    wanted_l0: float
    n_tokens: int
    own_fvu: float
    own_l0: float
    fvu: float
    l0: float
    shared: float
    better: float

    @property
    def gap(self) -> float:
        """The share of the SAE's error that is its encoder's."""
        return 1 - self.fvu / self.own_fvu


class _BothEncoders:
    """Sums over the batches, of both encoders."""

    def __init__(self, sae: WithEncoder, wanted_l0: float | None) -> None:
        self.sae, self.wanted_l0 = sae, wanted_l0
        shape = sae.d_out, sae.d_sae, sae.W_dec.device
        self.own, self.other = Reconstruction(*shape), Reconstruction(*shape)
        self.both = self.either = self.better = 0

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        rows, sae, found = batch.rows, self.sae.trained, batch.x_hat
        assert found is not None, "with_encoder refuses an SAE without a decoder"
        codes = sae.encode(rows.x)
        x_hat = sae.decode(codes, rows.x)
        self.own.update(rows.wanted, x_hat, codes)
        self.other.update(rows.wanted, found, rows.codes)
        own, other = ((made - rows.wanted).square().sum(1) for made in (x_hat, found))
        self.better += int((other < own).sum())
        both = torch.isin(_keys(codes), _keys(rows.codes)).sum()
        self.both += int(both)
        self.either += int(codes.active.sum() + rows.codes.active.sum() - both)

    def results(self) -> Amortisation:
        own, other, encoder = self.own.results(), self.other.results(), self.sae.encoder
        return Amortisation(
            encoder=encoder.name,
            amount=None if encoder.counts else float(encoder.amount),
            wanted_l0=self.wanted_l0 or own["l0"],
            n_tokens=self.own.n,
            own_fvu=own["fvu"],
            own_l0=own["l0"],
            fvu=other["fvu"],
            l0=other["l0"],
            shared=self.both / max(1, self.either),
            better=self.better / self.own.n,
        )


def _keys(codes: SparseCodes) -> Int[Tensor, " event"]:
    row, latent, _ = active_entries(codes)
    return row * codes.d_sae + latent


def _begun(inputs: Inputs) -> Streamed:
    assert isinstance(inputs.sae, WithEncoder), "say needs=(another_encoder,)"
    pairs = _BothEncoders(inputs.sae, inputs.options.encoder_l0)
    return Streamed(pairs.update, pairs.results)


def _lines(a: Amortisation) -> Iterator[Line]:
    how = "as many latents" if a.amount is None else f"penalty {a.amount:.4g}"
    yield "FVU, its own encoder", f"{a.own_fvu:.4f}", f"L0 {a.own_l0:.2f}"
    yield "FVU, the other encoder", f"{a.fvu:.4f}", "the same decoder, codes searched for"
    yield "L0, the other encoder", f"{a.l0:.2f}", f"latents active per token, on {a.n_tokens}"
    yield "set to", how, f"so that the L0 is {a.wanted_l0:.2f}"
    told = "of the SAE's error, at the least; negative if its own encoder is better"
    yield "the encoder's part", f"{a.gap:.1%}", told
    yield "the same latents", f"{a.shared:.1%}", "of those that either encoder makes active"
    yield "better codes", f"{a.better:.1%}", "of the tokens have a lower error by the other encoder"


def _warnings(a: Amortisation) -> Iterator[str]:
    if abs(a.l0 - a.wanted_l0) > FAR * a.wanted_l0:
        yield (
            f"{a.encoder} has an L0 of {a.l0:.2f} instead of {a.wanted_l0:.2f}, so its FVU is that "
            "of other codes; compare the curves of saelab.encoder_curves."
        )


AMORTISATION = Measurement(
    "amortisation",
    "How much of the error is the encoder's?",
    _lines,
    stream=_begun,
    result=Amortisation,
    needs=(another_encoder,),
    suite="core",
    warnings=_warnings,
)
