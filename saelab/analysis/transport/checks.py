"""What of a run and a store can be measured together; the rest is refused before any work."""

from saelab.activations.store import ActivationStore
from saelab.analysis.transport.firing import covered
from saelab.analysis.transport.moments import Pair
from saelab.analysis.transport.options import TransportOptions
from saelab.config import UsageError
from saelab.sae.base import AbstractSAE
from saelab.sites import Site
from saelab.training.run import Run

SAME = ("weights_digest", "tokenizer_digest")


def check_store(run: Run, store: ActivationStore) -> None:
    """Refuse a store of another model than the run's.

    Raises:
        UsageError: the model's weights or tokenizer differ, or one of the two has no model.
    """
    own, other = run.provenance().get("model"), store.manifest.model
    if own is None and other is None:
        return
    names = [str((model or {}).get("name", "arrays")) for model in (own, other)]
    if own is None or other is None or any(own.get(name) != other.get(name) for name in SAME):
        digest = "" if names[0] != names[1] else ", whose weights or tokenizer differ"
        raise UsageError(
            f"{store.path} is of {names[1]}, and {run.path} was trained on {names[0]}{digest}; "
            "give a store of the run's model."
        )


def pairs_of(
    run: Run, sae: AbstractSAE, store: ActivationStore, options: TransportOptions
) -> list[Pair]:
    """The pairs of sites to measure: each earlier one with each one that is computed after it.

    Raises:
        UsageError: a site is unknown, the SAE's sites have other widths in this store, no pair is
            in order, or none has latents of the run.
    """
    later = options.to or (run.config.written_site,)
    for site in dict.fromkeys((*options.from_, *later, run.config.site)):
        store.site(site)
    widths = {run.config.site: sae.d_in, run.config.written_site: sae.d_out}
    for site, width in widths.items():
        if (found := store.site(site).d_in) != width:
            raise UsageError(
                f"{site} has {found} numbers in {store.path}, and the SAE of {run.path} takes "
                f"{width}; give the store that it was trained on, or one of the same model."
            )
    pairs = [(a, b) for a in dict.fromkeys(options.from_) for b in dict.fromkeys(later) if a != b]
    if not pairs:
        raise UsageError(f"--from and --to are both {later[0]}; name two sites.")
    (a, b), *_ = pairs
    pairs = [pair for pair in pairs if not _behind(*pair)]
    if not pairs:
        raise UsageError(f"--from {a} is computed after --to {b}; swap them.")
    if not any(latents_at(run, store, pair) for pair in pairs):
        raise UsageError(_no_latents(run, pairs))
    return pairs


def latents_at(run: Run, store: ActivationStore, pair: Pair) -> str:
    """Which site of a pair the run's latents are of: `to`, `from`, or neither (empty).

    Latents of the earlier site are read at the later one, so both must be equally wide.
    """
    written = run.config.written_site
    if pair[1] == written:
        return "to"
    alike = store.site(pair[0]).d_in == store.site(pair[1]).d_in
    return "from" if pair[0] == written and alike else ""


def _no_latents(run: Run, pairs: list[Pair]) -> str:
    written = run.config.written_site
    if any(written in pair for pair in pairs):
        return (
            f"The latents of {run.path} are of {written}, and no --to is as wide as that, so none "
            "has their directions; name a site of the same width, or take a run of a later site."
        )
    named = " or ".join(dict.fromkeys(site for pair in pairs for site in pair))
    return (
        f"The latents of {run.path} are of {written}, not of {named}; name {written} as --to, or "
        "as --from to see what becomes of them."
    )


PARTS = (("ln1", "attn.", "hook_attn"), ("hook_resid_mid",), ("ln2", "mlp.", "hook_mlp"))
"""The beginnings of the names of a block's parts, in the order of the computation."""


def _behind(a: str, b: str) -> bool:
    """Whether hook `a` is computed after `b`; names of arrays tell nothing."""
    first, second = Site.find(a), Site.find(b)
    if first is None or second is None:
        return False
    return _depth(first) > _depth(second)


def _depth(site: Site) -> tuple[int, int]:
    """Where a site stands in the computation; behind all blocks where it has no layer."""
    layer = 10**6 if site.next_layer is None else site.next_layer
    return layer, next((i for i, part in enumerate(PARTS, 1) if site.part.startswith(part)), 0)


def ranks_of(store: ActivationStore, pair: Pair, options: TransportOptions) -> tuple[int, ...]:
    """The ranks to measure of a pair.

    Raises:
        UsageError: a rank is larger than a map between these sites can have.
    """
    most = min(store.site(site).d_in for site in pair)
    if options.rank and max(options.rank) > most:
        raise UsageError(
            f"--rank {max(options.rank)} is more than the {most} that a map from {pair[0]} to "
            f"{pair[1]} has at most; lower it."
        )
    return covered(options.rank, most)


def check_rows(store: ActivationStore, pair: Pair, n: int) -> None:
    """Refuse rows too few to fit a map.

    Raises:
        UsageError: the folds of a fit have no more rows than a site has numbers.
    """
    most = max(store.site(site).d_in for site in pair)
    if n <= most:
        raise UsageError(
            f"{n} rows of {store.path} are left to fit a map of {most} numbers, which any "
            f"{most} rows fit exactly; raise --n-tokens, or harvest more."
        )
