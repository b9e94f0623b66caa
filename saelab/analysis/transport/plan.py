"""What measuring transport will need, told before it starts."""

from collections.abc import Sequence

import torch

from saelab.activations.store import ActivationStore
from saelab.analysis.transport.moments import Pair
from saelab.analysis.transport.options import TransportOptions
from saelab.analysis.transport.rows import PairedRows
from saelab.resources import Plan
from saelab.sae.base import AbstractSAE

FIT = 12
"""Matrices of a pair's width in memory at once during a fit, beside FOLD for each fold."""
FOLD = 7
SUMS = 20
"""Sums per latent and group of documents."""
AT_REST = 300 * 2**20
"""Bytes for code that is loaded meanwhile, and for memory that the allocator keeps."""


def transport_plan(
    sae: AbstractSAE,
    store: ActivationStore,
    pairs: Sequence[Pair],
    rows: PairedRows,
    options: TransportOptions,
    device: torch.device,
) -> Plan:
    """The plan; memory follows from widths, folds and latents."""
    width = {site: store.site(site).d_in for pair in pairs for site in pair}
    squares = [d * d for d in width.values()] + [width[a] * width[b] for a, b in pairs]
    largest = max(width.values()) ** 2
    numbers = options.folds * (sum(squares) + FOLD * largest) + FIT * largest
    numbers += SUMS * rows.n_groups * sae.d_sae
    return Plan(
        "transport",
        device,
        8 * numbers + AT_REST,
        "name fewer sites at once, or lower --folds",
    )
