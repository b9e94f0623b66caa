"""Expectation maximisation of a truncated sparse coding model, on batches (arXiv 1908.06843).

E-step: the posterior of each row over a few states, `saelab.pursuit.truncation`. M-step, closed:

    W = argmin sum_n E||x_n - b - z_n W||^2,   sigma^2 = that minimum / (N D),   pi = mean P(on),

the values' parameters being the variant's. Both need only the means over rows of P(on), z, z z^T,
z x^T, x and ||x||^2. A step moves the stored means towards those of its batch (stepwise EM: Cappe
and Moulines 2009), so a step costs the same whatever the store's size, an interrupted training
needs no pass over the store to go on, and the state is that of a batch. With batches that are the
whole store and `forgetting` 0 it is EM as in the paper, and the free energy never falls if the set
of states does not change.

Cost of a step with B rows: 6 B d_sae d_in for products, B times the states, and d_sae^3 / 3 for the
M-step in float64, which also keeps d_sae^2 numbers: meant for up to some ten thousand latents.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.pursuit.truncation import Evidence
from saelab.sae.context import LossContext
from saelab.sae.losses import squared_error
from saelab.sae.truncated import AbstractTruncatedSAE
from saelab.types import ActivationBatch, LossTerms, SparseCodes

RIDGE = 10
"""Machine epsilons of the rows' dtype, times the largest second moment: how firmly the M-step holds
atoms where they are. It decides only for latents that were never on, and changes no fixed point."""
LEAST_NOISE = 1e-8
"""Smallest variance of the noise, relative to the mean square of the rows."""


class ExpectationMaximisation:
    """The training step of one model; see the module.

    Attributes:
        on, mean, second, cross: means over rows of P(on) `[d_sae]`, E[z], E[z z^T] and E[z]^T x.
        x, square: means over rows of x and ||x||^2.
    """

    def __init__(self, sae: AbstractTruncatedSAE) -> None:
        self.sae = sae
        d_sae, d_in = sae.W_dec.shape

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=sae.W_dec.device)

        self.on, self.mean, self.second = zeros(d_sae), zeros(d_sae), zeros(d_sae, d_sae)
        self.cross, self.x, self.square = zeros(d_sae, d_in), zeros(d_in), zeros()

    @torch.no_grad()
    def __call__(self, batch: ActivationBatch, context: LossContext) -> LossTerms:
        """One E-step on the batch and one M-step; the figures are those of the E-step."""
        x, sae = batch.x, self.sae
        temperature, noise = sae.config.at(context)
        if noise:
            self._shake(noise, context)
        self._fade(1 - (context.step + 1) ** -sae.config.forgetting, len(x))
        parts, free_energy, at_limit = [], x.new_zeros(()), x.new_zeros(())
        for rows in sae.chunks(x):
            evidence = sae.evidence(rows)
            prior, likelihood = evidence.log_prior(sae.log_odds()), evidence.log_likelihood()
            joint = prior + likelihood
            warm = joint if sae.config.anneal_prior else likelihood
            posterior = (joint + (1 / temperature - 1) * warm).softmax(dim=1)
            self._add(rows, evidence, posterior)
            free_energy += (joint.logsumexp(dim=1) + sae.log_nothing(rows)).sum()
            at_limit += posterior[:, evidence.sizes() >= sae.config.max_active].sum()
            parts.append(sae.best_codes(evidence, joint))
        codes = SparseCodes(
            torch.cat([part.values for part in parts]),
            torch.cat([part.indices for part in parts]),
            sae.d_sae,
        )
        mse = squared_error(x, sae.decode(codes))
        figures = {
            "free_energy": free_energy / len(x),
            "at_limit": at_limit / len(x),
            "pi": sae.pi.mean().clone(),
            "sigma": sae.sigma.clone(),
            "temperature": x.new_tensor(temperature),
        }
        self._maximise()
        return LossTerms(-free_energy / (len(x) * sae.d_in), mse, codes, figures)

    def tensors(self) -> dict[str, Tensor]:
        """See `OwnStep.tensors`."""
        names = ("on", "mean", "second", "cross", "x", "square")
        return {f"em.{name}": getattr(self, name) for name in names}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `OwnStep.load`."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    def _shake(self, noise: float, context: LossContext) -> None:
        """Add noise to the model's atoms."""
        sae = self.sae
        drawn = torch.randn(sae.W_dec.shape, generator=context.generator()).to(sae.W_dec)
        atoms = sae.W_dec * sae.scales()[:, None] + noise * sae.sigma * drawn
        self._set_atoms(atoms)

    def _fade(self, share: float, n_rows: int) -> None:
        """Multiply what is stored by `share`; rows that are added count for the rest."""
        self._weight = (1 - share) / n_rows
        for value in self.tensors().values():
            value.mul_(share)

    def _add(
        self,
        rows: Float[Tensor, "batch d_in"],
        evidence: Evidence,
        posterior: Float[Tensor, "batch all"],
    ) -> None:
        found, weight, d_sae = evidence.moments(posterior), self._weight, self.sae.d_sae
        self.on += weight * found.on.sum(0)
        self.mean += weight * found.mean.sum(0)
        self.second.diagonal().add_(found.squares, alpha=weight)
        pairs = evidence.candidates[:, :, None] * d_sae + evidence.candidates[:, None, :]
        _add_at(self.second.view(-1), pairs.flatten(), weight * found.products.double().flatten())
        self.cross += weight * (found.mean.T @ rows)
        self.x += weight * rows.sum(0)
        self.square += weight * rows.square().sum()

    def _maximise(self) -> None:
        sae = self.sae
        atoms = (sae.W_dec * sae.scales()[:, None]).double()
        moments, wanted, old = self.second, self.cross, atoms
        if sae.config.learn_bias:
            # The bias is the atom of a latent that is always on with the value 1.
            edge = self.mean[:, None]
            below = torch.cat([edge.T, edge.new_ones(1, 1)], dim=1)
            moments = torch.cat([torch.cat([self.second, edge], dim=1), below])
            wanted = torch.cat([self.cross, self.x[None]])
            old = torch.cat([atoms, sae.b_dec.double()[None]])
        new = least_squares(moments, wanted, old, RIDGE * torch.finfo(sae.W_dec.dtype).eps)
        missed = self.square - 2 * (new * wanted).sum() + (new * (moments @ new)).sum()
        variance = torch.maximum(missed, LEAST_NOISE * self.square) / sae.d_in
        sae.sigma.copy_(variance.sqrt())
        if sae.config.learn_bias:
            sae.b_dec.copy_(new[-1])
        self._set_atoms(new[: sae.d_sae])
        sae.take_moments(self.on, self.mean, self.second.diagonal())

    def _set_atoms(self, atoms: Float[Tensor, "d_sae d_in"]) -> None:
        """Store the model's atoms as unit atoms, and what is known of values in their units."""
        sae, norms = self.sae, atoms.norm(dim=1).clamp_min(1e-12)
        sae.W_dec.copy_(atoms / norms[:, None])
        sae.take_norms(norms.to(sae.W_dec))
        grown = (norms / sae.scales()).double()
        self.mean *= grown
        self.cross *= grown[:, None]
        self.second *= grown[:, None] * grown


def least_squares(
    moments: Float[Tensor, "n n"],
    wanted: Float[Tensor, "n d_in"],
    old: Float[Tensor, "n d_in"],
    ridge: float,
) -> Float[Tensor, "n d_in"]:
    """The W nearest to `old` of those with moments @ W = wanted, up to the ridge.

    Raises:
        UsageError: the moments are not finite.
    """
    held = ridge * moments.diagonal().max().clamp_min(1e-30)
    missing = wanted - moments @ old
    for _ in range(8):
        matrix = moments.clone()
        matrix.diagonal().add_(held)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed):
            return old + torch.cholesky_solve(missing, factor)
        held = 10 * held
    raise UsageError("The training's second moments are not finite; check the activations.")


def _add_at(out: Tensor, places: Tensor, values: Tensor) -> None:
    """out[places] += values, with the same result in each call on one device."""
    if out.device.type == "cpu":
        out.index_add_(0, places, values)
    else:
        # This sorts; index_add_ adds in any order.
        out.index_put_((places,), values, accumulate=True)
