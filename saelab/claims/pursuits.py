"""Codes by search: what encoders lose (arXiv 2411.13117), and what l1 does (arXiv 2301.10002)."""

import torch

from saelab.claims.claim import Claim
from saelab.claims.measures import fvu, on
from saelab.claims.outcome import Outcome, over_seeds, ratios
from saelab.claims.setting import Setting
from saelab.pursuit.encoders import calibrated
from saelab.sae.topk import TopKConfig
from saelab.sae.with_encoder import with_encoder
from saelab.testing.planted import group_atoms, group_values, rows
from saelab.training.config import TrainConfig

N_ROWS = 1000
CLOSER = ("half", "cel0", "l0")
ACTIVE = 4


def _penalties(setting: Setting) -> Outcome:
    """The true dictionary, 60 atoms in 20 dimensions; every penalty has the rows' true L0."""
    away: dict[str, list[float]] = {name: [] for name in ("lasso", *CLOSER)}
    error: dict[str, list[float]] = {name: [] for name in away}
    for seed in setting.seeds:
        atoms = group_atoms(10, 6, space=2, seed=seed).to(setting.device)
        z = group_values(N_ROWS, 10, 6, active=ACTIVE, seed=seed).to(setting.device)
        x = rows(z.cpu(), atoms.cpu(), seed=seed).to(setting.device)
        for name in away:
            codes = calibrated(name, x, atoms, ACTIVE, nonnegative=True).encode(x, atoms).dense()
            away[name].append(float((codes - z).square().sum() / z.square().sum()))
            error[name].append(fvu(x, codes @ atoms))
    compared = {
        f"distance of codes from the truth, {name} / l1": over_seeds(
            ratios(away[name], away["lasso"])
        )
        for name in ("cel0", "half", "l0")
    }
    lower = {
        f"FVU, {name} / l1": over_seeds(ratios(error[name], error["lasso"])) for name in CLOSER
    }
    return Outcome(
        figures=compared | lower,
        holds={label: figure.below(1) for label, figure in (compared | lower).items()},
    )


def _gap(setting: Setting) -> Outcome:
    subject = setting.subject
    site = subject.sites.residual
    config = TrainConfig(
        sae=TopKConfig(d_sae=512, k=12),
        activations=subject.store(site),
        site=site,
        n_tokens=200_000,
        batch_size=2048,
        lr=2e-3,
    )
    saes = setting.trained(subject.fitted({"topk": config}))["topk"]
    x, share = on(saes[0], subject.held_out(site).x[site][:N_ROWS]), []
    with torch.no_grad():
        for sae in saes:
            pursued = with_encoder(sae, "omp", x)
            share.append(fvu(x, pursued.reconstruct(x)) / fvu(x, sae.reconstruct(x)))
    ratio = over_seeds(share)
    return Outcome(
        figures={"FVU, pursuit / own encoder": ratio},
        holds={"a lower error with the same decoder at equal L0": ratio.below(1)},
    )


PENALTIES = Claim(
    "penalties-beyond-l1",
    "2301.10002",
    "At equal sparsity, penalties closer to l0 than l1 have codes nearer the truth and less error.",
    "figures without values (image patches, V1)",
    "60 planted atoms in 20 dimensions, L0 4",
    _penalties,
)
GAP = Claim(
    "amortisation-gap",
    "2411.13117",
    "An SAE's encoder is worse than a search for codes in its own dictionary at equal L0.",
    "none that compares (synthetic data; GPT-2)",
    "tiny, blocks.2.hook_resid_post",
    _gap,
    with_model=True,
)
