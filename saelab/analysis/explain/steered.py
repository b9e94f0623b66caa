"""What the model writes with a latent turned up, beside what it writes otherwise, kept in a run.

`steer_texts` writes it. One half of the prompts is for who explains, the other for who judges.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelab.analysis.explain.evidence import LONGEST_TEXT
from saelab.analysis.explain.records import column, damaged, mapping
from saelab.formats.json_file import read_sealed_json, write_sealed_json

NAME, FORMAT = "steered.json", "saelab-steered/1"
MOST_VALUES = 2**22


@dataclass
class SteeredTexts:
    """Continuations of the same prompts, plain and steered by each of several latents.

    Attributes:
        sampling: how they were sampled.
        prompts: the beginnings.
        plain: the continuation of each without steering.
        by_latent: for each latent, its strength in units of its own maximum, the KL that it has
            there, and the continuation of each prompt.
    """

    sae_sha256: str
    sampling: dict[str, Any] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    by_latent: dict[int, tuple[float, float, list[str]]] = field(default_factory=dict)

    def shown(self, latent: int) -> list[tuple[str, str, str]]:
        """For who explains: prompts with their plain and their steered continuation."""
        texts = self.by_latent[latent][2]
        return list(zip(self.prompts[::2], self.plain[::2], texts[::2], strict=True))

    def held_out(self, latent: int) -> list[tuple[str, str]]:
        """For who judges: other prompts with the steered continuation."""
        return list(zip(self.prompts[1::2], self.by_latent[latent][2][1::2], strict=True))


def write_steered(path: Path, found: SteeredTexts) -> None:
    """Write the texts, whole or not at all."""
    latents = sorted(found.by_latent)
    values: dict[str, Any] = {
        "format": FORMAT,
        "made": {"sae_sha256": found.sae_sha256, "sampling": found.sampling},
        "prompts": found.prompts,
        "plain": found.plain,
        "latents": latents,
        "strengths": [found.by_latent[n][0] for n in latents],
        "kl": [found.by_latent[n][1] for n in latents],
        "texts": [found.by_latent[n][2] for n in latents],
    }
    write_sealed_json(path, values)


def read_steered(path: Path) -> SteeredTexts:
    """The texts in the file at `path`.

    Raises:
        UsageError: it is damaged.
    """
    values = read_sealed_json(path, most=2**29, max_values=MOST_VALUES)
    if values.get("format") != FORMAT:
        raise damaged(path, f"its format is not {FORMAT}")
    made = mapping(values, "made", path)
    digest, sampling = made.get("sae_sha256"), mapping(made, "sampling", path)
    prompts, unsteered = (column(values, name, path) for name in ("prompts", "plain"))
    rows = [column(values, name, path) for name in ("latents", "strengths", "kl", "texts")]
    n = len(prompts)
    texts = [prompts, unsteered, *rows[3]]
    fits = isinstance(digest, str) and len({*map(len, rows)}) == 1
    fits = fits and all(isinstance(one, list) and len(one) == n for one in texts)
    fits = fits and all(isinstance(t, str) and len(t) <= LONGEST_TEXT for o in texts for t in o)
    fits = fits and all(type(v) is int and v >= 0 for v in rows[0])
    fits = fits and all(type(v) in (int, float) for v in [*rows[1], *rows[2]])
    if not fits:
        raise damaged(path, "its texts are not those of latents and prompts")
    each = zip(*rows, strict=True)
    by_latent = {i: (float(s), float(kl), list(found)) for i, s, kl, found in each}
    return SteeredTexts(str(digest), sampling, list(prompts), list(unsteered), by_latent)
