"""The Known features page: which features of the text have a latent."""

from dataclasses import dataclass
from typing import Any

from feature_browser.data.address import AbstractAddress, parameter
from feature_browser.data.catalogue import FOUND, Catalogue, RunCard
from feature_browser.data.elsewhere import NOWHERE, Elsewhere, command, python
from feature_browser.data.known import plain
from feature_browser.data.reading import known_features, readable_known, texts_with_known
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import percent, real
from feature_browser.draw.tables import Column, anchor, cell, metered, part, sided, table
from feature_browser.pages import Page
from feature_browser.shell.canvas import palette, plot, show
from saelab.figures.evaluation import recovery_figure

PARTLY, PRESENT = 0.5, 0.9


@dataclass(frozen=True, kw_only=True)
class KnownAddress(AbstractAddress):
    """The text on which known features were looked for; the run's own if empty."""

    view = "known"
    text: str = parameter("")


def known_view(_: Catalogue, card: RunCard, address: KnownAddress) -> None:
    """Draw the recovery table and its picture."""
    texts = texts_with_known(card)
    text = address.text if address.text in texts else (*texts, "")[0]
    known = known_features(card, text)
    if not known.features:
        show(alone(_nothing(card)), "known")
        return
    ordered = sorted(known.features, key=lambda feature: -feature["f1"])
    show(_summary(ordered, known.too_rare, _texts(texts, text, address)), "known-summary")
    plot(recovery_figure(ordered, palette()), "recovery")
    show(_table(ordered, address), "known-table")


def verdict(feature: dict[str, Any]) -> str:
    """How well one latent represents the feature, in words."""
    if feature["f1"] >= FOUND:
        return "one latent has it"
    if feature["f1"] >= PARTLY:
        return "one latent has part of it"
    if feature["probe_auroc"] >= PRESENT:
        return "present, but in no single latent"
    return "hardly present here"


def _nothing(card: RunCard) -> Html:
    return message(
        "No known features",
        "This run was not evaluated on a text whose features are labelled. The shipped language "
        "model's text is; a text of your own is if its rows have labels, or a second file has.",
        command=f"saelab evaluate {card.path.as_posix()} --text TEXT.jsonl --labels LABELS.jsonl",
    )


def _texts(texts: list[str], chosen: str, address: KnownAddress) -> Html:
    """The current text and links to others; empty if the run's own is the only one."""
    if texts == [""]:
        return EMPTY
    names = joined(
        html(
            " · <b>{name}</b>" if name == chosen else ' · <a href="{href}">{name}</a>',
            href=address.to(text=name).href,
            name=name or "held out from training",
        )
        for name in texts
    )
    return html('<p class="sub">Labels of the text{names}</p>', names=names)


def _summary(features: list[dict[str, Any]], too_rare: list[str], texts: Html) -> Html:
    have = sum(feature["f1"] >= FOUND for feature in features)
    present = sum(feature["probe_auroc"] >= PRESENT for feature in features)
    rare = f" Too rare to score: {', '.join(map(plain, too_rare))}." if too_rare else ""
    return html(
        '<div class="page wide"><h1 class="headline">{have} of {n} known features have a latent of '
        'their own</h1><p class="sub">F1 of at least {found}, on text the latent was not chosen '
        "on. A linear probe of the same activations reaches an AUROC of {bar} or more for "
        "{present} of them.{rare}</p>{texts}</div>",
        have=have, n=len(features), found=FOUND, bar=PRESENT, present=present, rare=rare,
        texts=texts,
    )  # fmt: skip


def _table(features: list[dict[str, Any]], address: KnownAddress) -> Html:
    columns = [
        Column("Known feature"),
        Column("How often", "share of tokens on which it is on", numeric=True),
        Column("Best latent", "of the highest F1 on the half it was chosen on", numeric=True),
        Column("F1", "best latent, on the other half", numeric=True),
        Column("Precision", "of the best latent at its threshold", numeric=True),
        Column("Recall", "of the best latent at its threshold", numeric=True),
        Column("AUROC", "of the best latent", numeric=True),
        Column("Probe AUROC", "a linear probe of the activations", numeric=True),
        Column("Probe F1", "the same probe", numeric=True),
        Column("In words", f"{FOUND}, {PARTLY} of F1; {PRESENT} of probe AUROC"),
    ]
    return alone(table(columns, (_row(f, address) for f in features), "Known features"))


def _row(feature: dict[str, Any], address: KnownAddress) -> list[Html]:
    name = html(
        '<span class="name">{label}</span><br><span class="sub">{text}</span>',
        label=plain(feature["label"]),
        text=part(feature.get("description", ""), "in words"),
    )
    there = address.visit("latent", latent=feature["latent"])
    latent = anchor(there, sided(feature["latent"], feature["sign"]))
    scores = [
        cell(real(feature[score]))
        for score in ("precision", "recall", "auroc", "probe_auroc", "probe_f1")
    ]
    f1 = metered(real(feature["f1"]), feature["f1"])
    return [name, cell(percent(feature["frequency"])), latent, f1, *scores, cell(verdict(feature))]


def known_elsewhere(card: RunCard, _: KnownAddress) -> Elsewhere:
    """Measuring how well known features are found."""
    if not readable_known(card).features:
        return NOWHERE
    return Elsewhere(
        command("evaluate", card.path),
        python(
            card,
            "import saelab",
            "",
            'saelab.load_evaluation(saelab.Run($RUN)).results["recovery"]',
        ),
    )


PAGE = Page(
    "Known features",
    KnownAddress,
    known_view,
    asks="Which features that the text's labels know of did the SAE find?",
    elsewhere=known_elsewhere,
)
