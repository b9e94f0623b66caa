"""Where a latent of heads gets its value: sources in the text, and sources by heads."""

from feature_browser.draw.markup import EMPTY, Html, html, joined, running
from feature_browser.draw.numbers import real, signed
from feature_browser.pages.attention.address import AttentionAddress
from feature_browser.pages.attention.study import Sources, Study
from saelab.console import isolated, visible

LEFT, TOTAL, ROW, HEAD, FOOT, WIDE = 62, 56, 26, 6, 58, 850
HALF = 11.0
"""Half the height of a bar: a contribution as large as the largest fills it."""


def word(token: str) -> str:
    """A token as it is shown alone."""
    return isolated(visible(token).strip()) or "␣"


def source_text(study: Study, address: AttentionAddress) -> Html:
    """The text up to the latent's token; shade and line above say what each token gives."""
    assert study.sources is not None
    given = study.sources.table.sum(1)
    largest = float(abs(given).max()) or 1.0
    parts = joined(
        _word(study, address, position, float(given[position]) / largest)
        for position in range(study.step.position + 1)
    )
    rest = study.pieces[study.step.position + 1 :]
    beyond = EMPTY
    if rest:
        beyond = html(
            '<span class="beyond" title="the latent cannot see what comes after it">{t}</span>',
            t=running(study.gap.join(visible(token) for token in rest)),
        )
    return html('<p class="text sources" dir="auto">{p}{b}</p>', p=parts, b=beyond)


def _word(study: Study, address: AttentionAddress, position: int, share: float) -> Html:
    given = study.sources.table[position].sum() if study.sources else 0.0
    here = position == study.step.position
    return html(
        '<a href="{href}" class="{on}{sign}{here}{picked}" style="--a:{a}" data-tip="{tip}" '
        'aria-label="{label}"{current}>{text}</a>{gap}',
        href=_to(address, position), on="on " if abs(share) >= 0.02 else "plain ",
        sign="neg" if share < 0 else "pos", here=" here" if here else "",
        picked=" peak" if address.source == str(position) else "",
        current=html(' aria-current="true"') if address.source == str(position) else EMPTY,
        a=f"{min(1.0, abs(share)):.2f}", text=running(visible(study.pieces[position])),
        label=f"{word(study.tokens[position])} at {position} gives {real(float(given))}",
        tip=f"{word(study.tokens[position])} @{position}   gives {signed(float(given))}"
        + ("\nthe latent fires here" if here else ""),
        gap=study.gap,
    )  # fmt: skip


def _to(address: AttentionAddress, source: int, head: int | None = None) -> str:
    return address.to(source=source, head="" if head is None else head).href


def heat_strip(study: Study, address: AttentionAddress) -> Html:
    """Heads by source tokens: bars up add to the latent's value, bars down take away."""
    assert study.sources is not None
    sources = study.sources
    n, heads = study.step.position + 1, sources.table.shape[1]
    wide = max(13.0, min(64.0, (WIDE - LEFT - TOTAL) / n))
    width, height = LEFT + n * wide + TOTAL, HEAD + ROW * heads + FOOT
    largest = float(abs(sources.table[:n]).max()) or 1.0
    rows = joined(_row(sources, head, (n, wide)) for head in range(heads))
    cells = joined(
        _cell(study, address, (source, head), wide, largest)
        for head in range(heads)
        for source in range(n)
    )
    names = joined(_token(study, source, wide, height) for source in range(n))
    picked = EMPTY
    if study.parts is not None and address.source:
        picked = html(
            '<rect class="column" x="{x}" y="{y}" width="{w}" height="{h}"/>',
            x=f"{LEFT + int(address.source) * wide:.1f}", y=HEAD, w=f"{wide:.1f}", h=ROW * heads,
        )  # fmt: skip
    return html(
        '<div class="wide-picture" tabindex="0" role="region" aria-label="Heads by source tokens">'
        '<svg class="strip" viewBox="0 0 {w} {h}" style="min-width:{m}px" role="group" '
        'aria-label="Contributions of {heads} heads from {n} source tokens; the list below has '
        'the largest">{rows}{cells}{picked}{names}</svg></div>',
        w=f"{width:.0f}", h=height, m=f"{min(width, WIDE) if width <= WIDE else width:.0f}",
        heads=heads, n=n, rows=rows, cells=cells, picked=picked, names=names,
    )  # fmt: skip


def _row(sources: Sources, head: int, frame: tuple[int, float]) -> Html:
    n, wide = frame
    y = HEAD + ROW * (head + 0.5)
    return html(
        '<text x="0" y="{ty}">head {head}</text><line class="grid" x1="{a}" x2="{b}" y1="{y}" '
        'y2="{y}"/><text x="{end}" y="{ty}" text-anchor="end" class="sum">{sum}</text>',
        ty=f"{y + 3.5:.1f}", y=f"{y:.1f}", head=f"{sources.layer}.{head}", a=LEFT,
        b=f"{LEFT + n * wide:.1f}", end=f"{LEFT + n * wide + TOTAL - 2:.1f}",
        sum=signed(float(sources.table[:, head].sum())),
    )  # fmt: skip


def _cell(
    study: Study, address: AttentionAddress, where: tuple[int, int], wide: float, largest: float
) -> Html:
    assert study.sources is not None
    source, head = where
    value = float(study.sources.table[source, head])
    size = abs(value) / largest
    if size < 0.004:
        return EMPTY
    x, middle = LEFT + source * wide, HEAD + ROW * (head + 0.5)
    tall = max(0.8, size * HALF)
    return html(
        '<a href="{href}" tabindex="-1" class="cell {sign}" data-tip="{tip}" aria-label="{label}">'
        '<rect class="tint" x="{x}" y="{top}" width="{w}" height="{row}" fill-opacity="{o}"/>'
        '<rect x="{bx}" y="{y}" width="{bw}" height="{h}"/></a>',
        href=_to(address, source, head), sign="neg" if value < 0 else "pos",
        tip=f"head {study.sources.layer}.{head} from {word(study.tokens[source])} @{source}\n"
        f"{signed(value, 3)}",
        label=f"head {head} from {word(study.tokens[source])} at {source}: {real(value)}",
        x=f"{x:.1f}", top=f"{middle - ROW / 2 + 1:.1f}", w=f"{wide:.1f}", row=ROW - 2,
        o=f"{0.32 * size:.2f}", bx=f"{x + wide * 0.22:.1f}", bw=f"{wide * 0.56:.1f}",
        y=f"{middle - tall if value > 0 else middle:.1f}", h=f"{tall:.1f}",
    )  # fmt: skip


def _token(study: Study, source: int, wide: float, height: float) -> Html:
    x, y = LEFT + (source + 0.5) * wide, height - FOOT + 10
    text = word(study.tokens[source])
    short = text if len(text) <= 9 else f"{text[:8]}…"
    here = " here" if source == study.step.position else ""
    return html(
        '<text class="token{here}" x="{x}" y="{y}" text-anchor="end" '
        'transform="rotate(-52 {x} {y})"><title>{full}</title>{short}</text>',
        here=here, x=f"{x + 3:.1f}", y=f"{y:.1f}", full=text, short=short,
    )  # fmt: skip
