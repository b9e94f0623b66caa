"""The model card of a run: what the SAE is, how good, how it was made, and how to load it.

A card is Markdown below a header in YAML, as the Hugging Face Hub reads it. Every text of a run is
escaped: names of models, hooks and labels come from files.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import yaml

from saelab.config import UsageError
from saelab.evaluation.report import Section, report
from saelab.evaluation.results import load_evaluation
from saelab.training.run import Run

RUN_FOLDER = "saelab"
"""Where the run itself is in the repository."""
_DIRECTORIES = re.compile(r"(?<![\w.:/~\\-])(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s]+[/\\])+")
"""What a path says beside its last name, e.g. whose home directory it is in."""
MOST_ROWS = 12
UNKNOWN = "unknown"
LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsl-1.0
c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 gemma gfdl
gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 mit mpl-2.0
ms-pl odbl openrail openrail++ osl-3.0 pddl unlicense wtfpl zlib
"""
"""Names by which the hub knows licences; others are `other`, with their name beside it."""
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SPECIAL = re.compile(r"([\\`*_\[\]|~#])")


@dataclass(frozen=True)
class CardOptions:
    """What a run does not say of itself.

    Attributes:
        repo: `owner/name` on the hub.
        licence: the SAE's, by the hub's name for it; None if nobody has stated one.
        base_model: the language model's `owner/name` on the hub; None: the run's, if it is one.
        sae_lens: the folder in the repository of the same SAE for SAELens; None if there is none.
    """

    repo: str
    licence: str | None = None
    base_model: str | None = None
    sae_lens: str | None = None

    def check(self) -> None:
        """Refuse a name that the hub would refuse.

        Raises:
            UsageError: the repository, the licence or the model is no name.
        """
        if not _ON_HUB.fullmatch(self.repo):
            raise UsageError(f"{self.repo!r} is no name of a repository; owner/name is.")
        if self.base_model is not None and not _ON_HUB.fullmatch(self.base_model):
            raise UsageError(f"--base-model {self.base_model!r} is no owner/name on the hub.")
        if self.licence is not None and not _LICENCE.fullmatch(self.licence):
            raise UsageError(
                f"--license {self.licence!r} is no name of a licence; give one such as apache-2.0, "
                "mit or cc-by-4.0."
            )


def card(run: Run, options: CardOptions, d_in: int) -> str:
    """The card, the text of README.md; `d_in` is the width of the rows that the SAE reads.

    Raises:
        UsageError: a file of the run is damaged, or `options` has no possible names.
    """
    options.check()
    made = anonymous(run.provenance())
    parts = [
        f"# {_text(options.repo.partition('/')[2])}",
        _about(run, made),
        *_figures(run),
        *_loading(run, options, d_in),
        *_origin(run, made),
        "## Licence",
        _licence(made, options),
    ]
    header = yaml.safe_dump(_header(run, made, options), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(parts) + "\n"


def _header(run: Run, made: dict[str, Any], options: CardOptions) -> dict[str, Any]:
    licence = options.licence or _stated(made) or UNKNOWN
    values: dict[str, Any] = {"license": licence.lower()}
    if licence != UNKNOWN and licence.lower() not in LICENCES.split():
        values = {"license": "other", "license_name": licence.lower()}
    if base := options.base_model or _on_hub((made["model"] or {}).get("name")):
        values["base_model"] = base
    source = str((made["corpus"] or {}).get("source", ""))
    if source.startswith("hf:") and (name := _on_hub(source[3:].split(":")[0])):
        values["datasets"] = [name]
    values["library_name"] = "saelens" if options.sae_lens else "saelab"
    values["tags"] = ["sparse-autoencoder", "interpretability", "saelab", _variant(run)]
    return values


def _on_hub(name: object) -> str | None:
    return name if isinstance(name, str) and _ON_HUB.fullmatch(name) else None


def _variant(run: Run) -> str:
    return str(run.options["sae"]["variant"])


def _stated(made: dict[str, Any]) -> str | None:
    """The licence of the release from which the SAE was imported."""
    licence = made.get("licence")
    return licence if isinstance(licence, str) and _LICENCE.fullmatch(licence) else None


def _text(value: object) -> str:
    """A text of a run that neither Markdown nor HTML takes for more."""
    line = " ".join(str(value).split())
    return _SPECIAL.sub(r"\\\1", escape(line, quote=False))


def _about(run: Run, made: dict[str, Any]) -> str:
    sae, model = run.options["sae"], made["model"]
    whose = (
        "its author's own activations"
        if model is None
        else f"the language model {_text(_short(model))}"
    )
    target = run.options.get("target_site")
    does = f"reads `{_code(run.options['site'])}`"
    if target:
        does += f" and reconstructs `{_code(target)}`"
    kind = "transcoder" if target else "sparse autoencoder (SAE)"
    return f"A {kind} of {whose}: {_text(sae['variant'])}, {sae['d_sae']} latents. It {does}."


def _short(model: dict[str, Any]) -> str:
    """A model's name; of one that was read from a directory, the directory's."""
    name = str(model["name"])
    return name if _on_hub(name) else name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def _code(value: object) -> str:
    return " ".join(str(value).replace("`", "'").split())


def _figures(run: Run) -> list[str]:
    evaluation = load_evaluation(run)
    sections = report({run.name: evaluation})
    if not sections:
        return ["## Figures", "It has not been evaluated."]
    text = "held-out rows" if run.on_arrays else "held-out text, which training did not see"
    parts = ["## Figures", f"Measured by saelab on {text}; `{RUN_FOLDER}/evaluation` has all."]
    for section in sections:
        parts += [f"### {_text(section.title)}", *map(_text, filter(None, [section.about]))]
        parts += [_table(section), *map(_text, section.warnings)]
    return parts


def _table(section: Section) -> str:
    names = [column.name.replace("\n", " ").strip() for column in section.columns]
    rules = ["--:" if column.number else "---" for column in section.columns]
    rows = list(section.rows[:MOST_ROWS])
    left = len(section.rows) - len(rows)
    lines = [_row(map(_text, names)), _row(rules), *(_row(map(_text, row)) for row in rows)]
    return "\n".join(lines + ([f"\n{left} more rows are in the run."] if left else []))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _loading(run: Run, options: CardOptions, d_in: int) -> list[str]:
    parts = [
        "## Load it",
        "In saelab, as the run that it was (`saelab show`, `evaluate`, `features` and all other "
        "verbs take its folder):",
        "```python\nimport saelab\nfrom huggingface_hub import snapshot_download\n\n"
        f'run = saelab.Run(snapshot_download("{options.repo}") + "/{RUN_FOLDER}")\n'
        "sae = run.load_sae()\ncodes = sae.encode(rows)  # rows: [n, "
        f"{d_in}], float32\nx_hat = sae.decode(codes)\n```",
    ]
    if options.sae_lens is None:
        return [*parts, f"SAELens has no architecture for {_text(_variant(run))} like this one."]
    return [
        *parts,
        "In SAELens 6:",
        "```python\nfrom sae_lens import SAE\n\n"
        f'sae = SAE.from_pretrained("{options.repo}", "{options.sae_lens}")\n```',
    ]


def _origin(run: Run, made: dict[str, Any]) -> list[str]:
    model, corpus = made["model"] or {}, made["corpus"] or {}
    rows = [
        ("made", made.get("created")),
        ("imported from", made.get("imported_from")),
        ("paper", made.get("paper")),
        ("model", _short(model) if model else None),
        ("digest of its weights", model.get("weights_digest")),
        ("text", corpus.get("source")),
        ("tokens per context", made.get("context_length")),
        ("rows of training", f"{run.options['n_tokens']:,}" if run.options["n_tokens"] else None),
        ("batch, learning rate", f"{run.options['batch_size']}, {run.options['lr']}"),
        ("seed", run.options.get("seed")),
        ("saelab", (made.get("versions") or {}).get("saelab")),
        ("commit of saelab", made.get("commit")),
    ]
    if made.get("imported_from"):
        rows = [row for row in rows if row[0] not in ("batch, learning rate", "seed")]
    lines = [_row((name, _text(value))) for name, value in rows if value not in (None, "")]
    parts = ["## How it was made", "\n".join(["| | |", "| --- | --- |", *lines])]
    notes = made.get("notes")
    if isinstance(notes, list):
        parts += [_text(each) for each in notes]
    if (limit := (made.get("domain") or {}).get("max_norm")) is not None:
        parts.append(
            f"It holds for rows of a norm up to {limit:.6g}: training left out larger ones "
            "(massive activations) and special tokens."
        )
    return parts


def _licence(made: dict[str, Any], options: CardOptions) -> str:
    licence = options.licence or _stated(made)
    own = "Nobody has stated a licence for it." if licence is None else f"{_text(licence)}."
    if made["model"] is None:
        return own
    return f"{own} The language model and the text have licences of their own."


def anonymous(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The value with every absolute path in its texts cut to its last name."""
    if isinstance(value, dict):
        return {name: anonymous(each) for name, each in value.items()}
    if isinstance(value, list):
        return [anonymous(each) for each in value]
    return _DIRECTORIES.sub("", value) if isinstance(value, str) else value
