"""Explain a prediction: the form, the job's progress, and the queue."""

import time
from pathlib import Path

import streamlit as st

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.draw.boxes import alone, bar, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, real
from feature_browser.live.chat import HELP, LABEL, chats
from feature_browser.live.jobs import GraphJob, job_queue
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.request import (
    BETWEEN_SAES,
    Choice,
    choices,
    chosen,
    prompt_of,
    request_of,
    title_of,
)
from feature_browser.shell.canvas import change, show, tell
from saelab.config import UsageError
from saelab.console import duration, si

FIELDS = ("prompt", "target", "against", "wanted", "limit", "saes", "chat")
SHOWN, PROBLEM = "explain-shown", "explain-problem"
SECONDS_BETWEEN_LOOKS = 0.6


def explain_form(catalogue: Catalogue, card: RunCard, address: CircuitAddress) -> None:
    """Draw the form; pressing Explain queues the job and puts it into the address."""
    known = choices(catalogue, card)
    _fill(card, address, known)
    with st.container(key="circuit-explain"), st.form("explain", border=False):
        st.text_area(
            "Prompt: why does the model go on as it does?", key="explain-prompt", height=68,
            placeholder="any text; what follows its last token is explained",
        )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.text_input(
                "Token", key="explain-target", placeholder="the most likely", width=150,
                help="The next token whose logit is explained; empty: the most likely one",
            )  # fmt: skip
            st.text_input(
                "against", key="explain-against", placeholder="the mean logit", width=150,
                help="Explain the difference to this token's logit; empty: to the mean logit",
            )  # fmt: skip
            st.text_input(
                "or a latent", key="explain-wanted", placeholder="SAE:NUMBER", width=190,
                help="SAE:NUMBER explains a latent's value at the last token where it fires, "
                "SAE:NUMBER@POSITION at another; an SAE is named by its run's directory",
            )  # fmt: skip
            st.number_input(
                "Latents", key="explain-limit", min_value=1, max_value=99_999, step=64, width=110,
                help="How many latents the graph may have: the most influential ones",
            )  # fmt: skip
            st.multiselect(
                "SAEs", list(known), key="explain-saes", width=300,
                format_func=lambda name: known[name].title,
            )  # fmt: skip
            if chats(card.model):
                st.checkbox(LABEL, key="explain-chat", help=HELP)
            st.form_submit_button(
                "Explain", type="primary", on_click=_submitted, args=(known,), key="explain-go"
            )
    tell(st.session_state.pop(PROBLEM, ""), "explain-problem")


def _fill(card: RunCard, address: CircuitAddress, known: dict[str, Choice]) -> None:
    """Fill the fields from the address, once per address."""
    shown = (address.run, *(getattr(address, name) for name in FIELDS), address.example)
    if st.session_state.get(SHOWN) == shown and all(
        _key(name) in st.session_state for name in FIELDS
    ):
        return
    st.session_state[SHOWN] = shown
    values: dict[str, object] = {name: getattr(address, name) for name in FIELDS}
    try:
        values["prompt"] = prompt_of(card, address)
    except UsageError as error:
        st.session_state[PROBLEM] = str(error)
    values |= {"limit": int(address.limit), "chat": bool(address.chat)}
    values["saes"] = chosen(known, address.saes)
    for name, value in values.items():
        st.session_state[_key(name)] = value


def _key(name: str) -> str:
    return f"explain-{name}"


def _submitted(known: dict[str, Choice]) -> None:
    given = {name: st.session_state.get(_key(name)) or "" for name in FIELDS}
    names = [name for name in st.session_state[_key("saes")] if name in known]
    given |= {"saes": BETWEEN_SAES.join(names), "chat": "1" if given["chat"] else ""}

    def asked(now: CircuitAddress) -> CircuitAddress:
        form = now.fresh(part="explain", beside=now.beside, **given)
        try:
            request = request_of(form, [known[name].path for name in names])
            return form.to(job=job_queue().submit(request, title_of(form)).name)
        except UsageError as error:
            st.session_state[PROBLEM] = str(error)
            return form

    change(CircuitAddress, asked)


def job_section(catalogue: Catalogue, address: CircuitAddress) -> CircuitAddress | None:
    """Draw the state of the address's job and the queue; returns the graph's address when done."""
    job = job_queue().find(address.job) if address.job else None
    if job is not None and job.state == "done":
        return _graph_of(catalogue, address, job)
    if job is not None and job.open:
        _watch(address)
        return None
    if address.job:
        show(alone(_ended(job)), "job")
    elif job_queue().open_jobs():
        _watch(address)
    return None


def _graph_of(
    catalogue: Catalogue, address: CircuitAddress, job: GraphJob
) -> CircuitAddress | None:
    path = Path(job.path).resolve()
    for run in catalogue.runs.values():
        if run.path.resolve() == path.parents[1]:
            beside = address.beside
            return CircuitAddress(
                run=run.name, carried=address.carried, graph=path.stem, beside=beside
            )
    show(alone(message("The graph is computed", f"It is in {path.as_posix()}.")), "job")
    return None


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def _watch(address: CircuitAddress) -> None:
    """The progress of the address's job, and the queue with a button to cancel each."""
    jobs = job_queue().open_jobs()
    mine = job_queue().find(address.job) if address.job else None
    if (mine is None and not jobs) or (mine is not None and not mine.open):
        st.rerun()
    if mine is not None:
        show(alone(_progress(mine, jobs)), "job")
        with st.container(key="circuit-job"):
            _cancel(mine, "Cancel")
    others = [job for job in jobs if job is not mine]
    if others:
        text = f"{count(len(others))} other question{'s' * (len(others) != 1)} asked"
        show(alone(html('<p class="sub">{t}, in this order:</p>', t=text)), "queue")
    with st.container(key="circuit-jobs"):
        for job in others:
            _cancel(job, f"Cancel {_plain(job.title)}")


def _cancel(job: GraphJob, label: str) -> None:
    st.button(label, key=f"cancel-{job.name}", on_click=job_queue().cancel, args=(job.name,))


def _plain(text: str) -> str:
    """Text that Markdown, which buttons use, shows unchanged."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:" else c for c in text)


def _progress(job: GraphJob, jobs: list[GraphJob]) -> Html:
    if job.state == "waiting":
        before = jobs.index(job) if job in jobs else 0
        text = f"{count(before)} before it. You may leave this page and come back to its address."
        return message(f"Waiting: {job.title}", text)
    report, started = job.report, job.steps[0][1] if job.steps else time.monotonic()
    ends = [at for _, at in job.steps[1:]]
    steps = joined(
        html("<li>{title} <span>{s} s</span></li>", title=title, s=real(end - at, 1))
        for (title, at), end in zip(job.steps[:-1], ends, strict=True)
    )
    return message(
        f"Explaining {job.title}",
        f"{duration(time.monotonic() - started)} so far. Other pages stay quick; you may leave.",
        after=html(
            '<ul class="steps">{steps}<li class="now" role="status">{now}</li></ul>{bar}',
            steps=steps, now=_now(job),
            bar=bar(report.done / report.total) if report.total else EMPTY,
        ),
    )  # fmt: skip


def _now(job: GraphJob) -> str:
    """The running step, with its rate and the time left where they are known."""
    report = job.report
    if not report.total or not report.done:
        return f"{report.title} …"
    rate = report.done / max(report.seconds, 1e-9)
    left = max(0, report.total - report.done) / max(rate, 1e-9)
    return (
        f"{report.title}: {count(report.done)} of {count(report.total)} {report.unit}, {si(rate)} "
        f"a second, about {duration(left)} left in this step"
    )


def _ended(job: GraphJob | None) -> Html:
    if job is None:
        return message(
            "This graph is no longer being computed",
            "The server was started again, or it is long ago. Press Explain to ask again.",
        )
    if job.state == "cancelled":
        return message("Cancelled", f"{job.title} was cancelled. Press Explain to ask again.")
    return message("This cannot be explained", job.problem)
