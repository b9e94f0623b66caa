"""The cards of the Latent page; each answers one question."""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import count as counting
from itertools import repeat

from feature_browser.data.known import Match
from feature_browser.data.labels import SURE, LatentNames
from feature_browser.data.reading import OpenRun, facts
from feature_browser.draw.annotate import headline
from feature_browser.draw.boxes import bar, boxed, pairs
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from feature_browser.draw.numbers import activation, count, percent, real, short_count
from feature_browser.draw.tables import choice
from feature_browser.draw.tokens import TextStyle, example_text
from feature_browser.pages.latent.address import CONTEXTS, SHOWN, LatentAddress
from saelab.analysis.records import Example, LatentRecord

AT_FIRST = 10


@dataclass(frozen=True)
class LatentScene:
    """A latent of a run, and the view that the address asks for."""

    run: OpenRun
    record: LatentRecord
    address: LatentAddress

    @cached_property
    def names(self) -> LatentNames:
        """The current names of latents."""
        return LatentNames.of(self.run.card)


def identity(scene: LatentScene) -> Html:
    """The latent's number, its notes, and the known feature that it matches best."""
    match = scene.run.known.matches.get(scene.record.latent)
    return html(
        '<section class="card identity">{head}{matched}</section>',
        head=headline(scene.run.card, scene.names.labels, scene.record.latent),
        matched=_matched(match, scene) if match else _unmatched(scene),
    )


def _matched(match: Match, scene: LatentScene) -> Html:
    best = match.feature["latent"]
    if best == scene.record.latent:
        rank = html("No other latent finds it better.")
    else:
        rank = html(
            'Latent <a href="{href}">{best}</a> finds it better: F1 {f1}.',
            href=scene.address.to(latent=best).href,
            best=best,
            f1=real(match.feature["f1"]),
        )
    body = html(
        '<h2>Known feature it matches best</h2><p class="lead{guess}">{title}</p><p class="sub">'
        "{text}</p>{bar}",
        title=match.title,
        guess="" if match.f1 >= SURE else " guess",
        text=match.feature.get("description", ""),
        bar=bar(match.f1),
    )
    rows = [
        ("F1 of this latent", real(match.f1)),
        ("AUROC of this latent", real(match.auroc)),
        ("AUROC of a linear probe", real(match.feature["probe_auroc"])),
    ]
    return html('{body}{rows}<p class="sub">{rank}</p>', body=body, rows=pairs(rows), rank=rank)


def _unmatched(scene: LatentScene) -> Html:
    if scene.run.known.features:
        return html('<p class="sub">It fired on none of the text used to match latents.</p>')
    return html(
        '<p class="sub">No known features: this run\'s text has no labels, or '
        "<code>saelab evaluate</code> has not run.</p>"
    )


def firing(scene: LatentScene) -> Html:
    """How often and how strongly it fires."""
    record = scene.record
    rows = [
        ("density", percent(record.density)),
        ("maximum", activation(record.max)),
        ("mean when on", activation(record.mean)),
        ("skew, kurtosis", f"{activation(record.skew)}, {activation(record.kurtosis)}"),
        ("fires on", f"{count(record.n_fired)} of {short_count(record.n_tokens)} tokens"),
    ]
    if record.n_negative:
        rows.append(("negative side", f"{percent(record.n_negative / record.n_fired)} of firings"))
    if record.massive:
        rows.append(("massive activations", f"{record.massive} on them"))
    return boxed("How it fires", pairs(rows), hint="see Health" if record.massive else "")


def neighbours(scene: LatentScene) -> Html:
    """The most similar latents: by decoder, by encoder, and by firing together."""
    record = scene.record
    groups = [
        ("Neighbours · cosine of decoders", record.neighbours),
        ("Neighbours · cosine of encoders", record.encoder_neighbours),
        ("Fire together · Jaccard index", record.coactive),
    ]
    return joined(_others(scene, title, found) for title, found in groups if found)


def _others(scene: LatentScene, title: str, found: list[tuple[int, float]]) -> Html:
    rows = joined(
        html(
            '<a class="neighbour" href="{href}"><b>{latent}</b><span>{name}</span>'
            "<em>{share}</em></a>",
            href=scene.address.to(latent=other).href,
            latent=other,
            name=_name(scene, other),
            share=real(share),
        )
        for other, share in found
    )
    first = [scene.record.latent, *(other for other, _ in found[:3])]
    href = scene.address.visit("beside", latents=",".join(map(str, first)))
    return boxed(
        title, rows, note=html('<a class="hint always" href="{h}">side by side</a>', h=href)
    )


def heads(scene: LatentScene) -> Html:
    """The heads' shares of the decoder row, for sites with heads."""
    shares = scene.record.head_weights
    rows = [(f"head {head}", percent(share)) for head, share in enumerate(shares)]
    if not rows:
        return EMPTY
    lead = html(
        '<p class="leads"><a href="{h}">Where do they look? Attention</a></p>',
        h=scene.address.visit("attention"),
    )
    return boxed("Share of each head", joined([pairs(rows), lead]))


def _name(scene: LatentScene, latent: int) -> str:
    if name := scene.names.name(latent):
        return name
    known = latent in scene.run.features.latents
    return "dead" if known and not scene.run.features.fired(latent) else ""


def reproduce(scene: LatentScene) -> Html:
    """Python code that shows the same latent, and what the figures were computed from."""
    code = (
        "from saelab.analysis.records import Features\n\n"
        f"features = Features.of({json.dumps(scene.run.card.path.as_posix())})\n"
        f"features[{scene.record.latent}].figure()"
    )
    known = facts(scene.run)
    source = (
        f"Read on {count(scene.record.n_tokens)} tokens, seed {known.get('seed', 'unknown')}; "
        f"weights {str(known.get('sae_sha256', 'unknown'))[:12]}."
    )
    body = html(
        '<pre><code>{code}</code></pre><p class="sub">{source}</p>', code=code, source=source
    )
    copy = html('<button class="copy" data-copy="{code}">Copy</button>', code=escaped(code))
    return boxed("Reproduce in Python", body, note=copy)


def examples(scene: LatentScene, kind: str, title: str, note: str) -> Html:
    """A card of examples; all beyond the first few open on demand."""
    found = scene.record.examples
    # The Attention page numbers the strongest examples of both signs consecutively.
    first = {"top": 0, "negative": len(found.get("top", []))}.get(kind)
    return example_card(scene, kind, title, note, found.get(kind, []), first)


def stratum(scene: LatentScene, number: int) -> Html:
    """A card of the examples sampled from one stratum; it may be empty."""
    part, parts = scene.record.strata[number], len(scene.record.strata)
    found = strata_examples(scene.record)[number]
    title = f"{100 * number // parts} to {100 * (number + 1) // parts} % of firings"
    note = (
        f"{len(found)} of {count(part.population)}, at random · activation "
        f"{activation(part.low)} to {activation(part.high)}"
    )
    if found:
        note += f" · each stands for {real(found[0].weight)}"
    return example_card(scene, "strata", title, note, found)


def strata_examples(record: LatentRecord) -> list[list[Example]]:
    """The examples of each stratum; a stratum of few firings has few examples."""
    kept = iter(record.examples.get("strata", []))
    sizes = [min(len(part.slots), part.population) for part in record.strata]
    return [[next(kept) for _ in range(size)] for size in sizes]


def example_card(
    scene: LatentScene,
    kind: str,
    title: str,
    note: str,
    found: list[Example],
    first: int | None = None,
) -> Html:
    """The examples `found` under a title; empty if there are none.

    `first` is the Attention page's number of the first example; None if it has none.
    """
    if not found:
        return EMPTY
    numbers = repeat(None) if first is None or not scene.record.head_weights else counting(first)
    rows = [_row(example, scene, number) for example, number in zip(found, numbers, strict=False)]
    rest = _more(rows[AT_FIRST:])
    return html(
        '<section class="card examples" data-kind="{kind}"><header><h2><b>{title}</b> <span>{note}'
        '</span></h2><span class="hidden-count" role="status"></span></header>{rows}{rest}'
        "</section>",
        kind=kind, title=title, note=note, rows=joined(rows[:AT_FIRST]), rest=rest,
    )  # fmt: skip


def _more(rows: list[Html]) -> Html:
    if not rows:
        return EMPTY
    body = "<details><summary>{n} more</summary>{rows}</details>"
    return html(body, n=len(rows), rows=joined(rows))


def _row(example: Example, scene: LatentScene, number: int | None) -> Html:
    context = scene.address.context
    style = TextStyle(
        scene.record.max, scene.run.spaced, None if context == "full" else int(context)
    )
    return html(
        '<div class="example" data-v="{v}"><span class="value">{value}</span>'
        '<span class="text" dir="auto">{text}</span><span class="source">{source}{heads}{why}'
        "</span></div>",
        # The histogram's filter needs activations, and a near miss has none.
        v=f"{0 if example.closeness is not None else example.value:.5g}",
        value=activation(example.value)
        if example.closeness is None
        else percent(example.closeness),
        text=example_text(example, style, scene.run.features.file),
        source=f"doc {count(example.document)} · {count(example.position)}",
        heads=EMPTY if number is None else _heads_of(scene.address, example, number),
        why=_why(scene, example),
    )


def _why(scene: LatentScene, example: Example) -> Html:
    """The link that asks for the circuit of the latent at the example's peak."""
    card = scene.run.card
    if example.closeness is not None or not card.in_circuits:
        return EMPTY
    there = scene.address.visit(
        "circuit", part="explain", example=f"{example.context}-{example.position}",
        wanted=f"{card.own_name}:{scene.record.latent}",
    )  # fmt: skip
    return html('<br><a href="{h}">explain</a>', h=there)


def _heads_of(address: LatentAddress, example: Example, number: int) -> Html:
    # The page uses the first example if none is named.
    there = address.visit("attention", example=number or None, pos=example.position)
    return html(
        '<br><a href="{h}" aria-label="Heads and sources of example {n}">heads, sources</a>',
        h=there, n=number + 1,
    )  # fmt: skip


def choices(address: LatentAddress) -> Html:
    """Links for the kind of examples, and for the amount of text around each peak."""
    shown = {"strongest": "strongest and random", "strata": "strata", "silent": "silent"}
    around = {"8": "±8", "16": "±16", "full": "full text"}
    picked = choice("examples", [(shown[s], address.to(show=s), s == address.show) for s in SHOWN])
    width = [(around[c], address.to(context=c), c == address.context) for c in CONTEXTS]
    return joined([picked, choice("context", width)])
