"""Compare as Python: each latent's nearest in the other run."""

from feature_browser.data.catalogue import RunCard
from feature_browser.data.elsewhere import NOWHERE, Elsewhere, command, python
from feature_browser.data.reading import list_runs
from feature_browser.pages.compare.address import CompareAddress
from feature_browser.pages.compare.places import cannot_match
from feature_browser.shell.launch import runs_directory
from saelab.config import UsageError


def compare_elsewhere(card: RunCard, address: CompareAddress) -> Elsewhere:
    """Cosines of decoder rows, where they can be matched; as a command, the other run's figures."""
    other = list_runs(runs_directory()).runs.get(address.other or "")
    if other is None or other is card or card.has_forms or other.has_forms:
        return NOWHERE
    shown = command("show", other.path)
    try:
        if cannot_match(card, other):
            return Elsewhere(shown)
    except UsageError:
        return Elsewhere(shown)
    best = "(rows @ theirs.T).abs()" if card.signed and other.signed else "rows @ theirs.T"
    return Elsewhere(
        shown,
        python(
            card,
            "import torch",
            "import saelab",
            "",
            "ours, theirs = (",
            "    torch.nn.functional.normalize(saelab.Run(path).load_sae().W_dec.detach().float())",
            "    for path in ($RUN, $other)",
            ")",
            "# A block of rows at a time: all cosines of two large SAEs would not fit.",
            f"parts = [({best}).max(dim=1) for rows in ours.split(1024)]",
            "cosine = torch.cat([part.values for part in parts])",
            "nearest = torch.cat([part.indices for part in parts])",
            "for latent in cosine.argsort(descending=True)[:20].tolist():",
            '    print(latent, int(nearest[latent]), f"{cosine[latent]:.3f}")',
            other=other.path,
        ),
    )
