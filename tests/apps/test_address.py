"""Addresses: each page owns its parameters, and links that readers have kept still work."""

import ast
from dataclasses import fields
from pathlib import Path

import feature_browser
import pytest
import streamlit as st
from apps.driving import Open, address, drawn
from feature_browser.data.address import AbstractAddress, is_number, link, numbers_of, parsed
from feature_browser.pages import pages
from feature_browser.shell.canvas import change

PAGES = pages()


def page_of(href: str) -> AbstractAddress:
    params = parsed(href)
    return PAGES[params.get("view", "latent")].address.of(params)


def values(name: str, param: str) -> list[str]:
    """Some texts of a page's parameter that are not its default, of those that it takes."""
    (field,) = (one for one in fields(PAGES[name].address) if one.name == param)
    known = ["live", "zoom", "measured", "firing", "massive", "matched", "neither", "other"]
    known += ["strata", "silent", "8", "full", "rank", "max", "rarity", "second"]
    known += ["0.25", "carried", "error", "less", "2-5", "explain", "no", "token"]
    known += ["0,0.5,-0.25,1", "7", "a b/c&d é +"]
    return [text for text in known if text != field.default and field.metadata["fits"](text)]


PARAMETERS = [
    (name, one.name)
    for name, page in PAGES.items()
    for one in fields(page.address)
    if one.name not in {"run", "carried"}
]


@pytest.mark.parametrize(("name", "param"), PARAMETERS)
def test_every_parameter_of_every_page_survives_its_address(name: str, param: str):
    texts = values(name, param)
    assert texts
    for text in texts:
        here = PAGES[name].address(run="a b/c&d").to(**{param: text})
        assert here.params()[param] == text
        assert PAGES[name].address.of(parsed(here.href)) == here
        assert page_of(link(name, run="a b/c&d", **{param: text})) == here


@pytest.mark.parametrize("name", PAGES)
def test_what_is_left_behind_is_all_but_what_stays(name: str):
    page = PAGES[name].address
    said = {param: values(name, param)[0] for owner, param in PARAMETERS if owner == name}
    here = page(run="r").to(**said)
    stays = {one.name for one in fields(page) if one.metadata.get("stays")}
    elsewhere = parsed(here.visit("runs"))
    assert elsewhere == {"view": "runs", "run": "r", **{n: said[n] for n in stays}}
    back = page.of(parsed(page_of(here.visit("runs")).visit(name)))
    assert back == here.fresh() == page(run="r").to(**{n: said[n] for n in stays})


@pytest.mark.parametrize(
    "nonsense",
    [
        {"context": "9", "show": "y"},
        {"view": "latents", "sort": "output", "keep": "dead", "box": "1,2,3", "page": "-2"},
        {"view": "steering", "sort": "f1", "keep": "matched", "part": "zoom", "box": "0,nan,0,1"},
        {"view": "compare", "side": "third", "keep": "dead", "page": "0"},
        {"view": "health", "keep": "unique", "page": "9" * 400},
        {"view": "circuit", "nodes": "101", "edges": "-1"},
        {"view": "attention", "pos": "x", "example": "1e3", "source": "9" * 400, "head": "-1"},
        {"view": "try", "sort": "f1", "page": "x"},
    ],
)
def test_what_is_no_value_of_a_parameter_falls_back(nonsense: dict[str, str]):
    page = PAGES[nonsense.get("view", "latent")].address
    assert page.of(nonsense) == page()


@pytest.mark.parametrize("box", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,nan,0,1", "0,inf,0,1"])
def test_a_box_that_is_not_four_finite_numbers_is_none(box: str):
    assert numbers_of(box) is None


def test_a_box_is_left_right_bottom_and_top():
    assert numbers_of("0,0.5,-0.25,1") == (0.0, 0.5, -0.25, 1.0)


@pytest.mark.parametrize(("text", "number"), [("3", 3), ("٣", 3), ("-2", None), ("9" * 400, None)])
def test_a_number_is_of_few_digits(text: str, number: int | None):
    assert (int(text) if is_number(text) else None) == number


KEPT_LINKS = {
    "?run=signed&latent=5&context=full&show=strata": "0 to 20 % of firings",
    "?view=latents&run=signed&sort=max&q=year&page=1": "found 1",
    "?view=latents&run=signed&axes=density%2Cmax&box=-9,9,-9,9": "one cell of the picture",
    "?view=known&run=signed&latent=7&context=8": "known features have a latent of their own",
    "?view=steering&run=signed&sort=input&keep=output&latent=5": "Steering scores",
    "?view=steering&run=signed&part=live&latent=5&prompt=her": "Saved experiments",
    "?view=health&run=signed&keep=duplicate&page=2&other=plain&side=other": "Which latents?",
    "?view=compare&run=signed&other=plain&side=other&keep=unique&page=1": "signed against plain",
    "?view=training&run=signed&part=zoom": "logged steps",
    "?view=attention&run=signed&latent=5&example=2&pos=3": "This page is about attention heads",
    "?view=circuit&run=signed&graph=g&nodes=50&edges=90&pins=a%7Cb": "There is no circuit g",
    "?view=runs&run=signed": "runs in",
    "?view=nowhere&run=signed&latent=5&utm=z": "Top examples",
}
"""Links as readers may have kept them, of every page, with a text of what they show."""


@pytest.mark.parametrize("href", KEPT_LINKS)
def test_links_that_readers_have_kept_still_work(open_app: Open, href: str):
    app = open_app(**parsed(href))
    told = drawn(app)
    assert KEPT_LINKS[href] in told.replace("\u00a0", " ")
    here = page_of(href.replace("nowhere", "latent"))
    own = {one.name for one in fields(here)}
    understood = {name: text for name, text in parsed(href).items() if name in own}
    assert {name: getattr(here, name) for name in understood} == understood
    assert address(app)["run"] == "signed"


def calls() -> list[tuple[str, str, set[str]]]:
    """Where pages lead: the file, the name of the page, and the parameters that are passed."""
    found = []
    for path in Path(feature_browser.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if called in {"link", "visit"} and isinstance(first, ast.Constant):
                passed = {one.arg for one in node.keywords if one.arg} - {"run"}
                found.append((path.name, str(first.value), passed))
    return found


def test_links_lead_to_pages_and_name_parameters_that_these_have():
    found = calls()
    views = {"latent", "latents", "steering", "attention", "compare", "circuit", "runs", "health"}
    views |= {"welcome", "try", "training", "beside", "lists"}
    assert views >= {view for _, view, _ in found}
    assert len(found) > 15
    for file, view, passed in found:
        known = {one.name for one in fields(PAGES[view].address)}
        assert passed <= known, (file, view)


def test_a_kept_link_to_a_page_of_another_run_opens_that_run(open_app: Open):
    assert 'data-latent="3"' in drawn(open_app(**parsed(link("latent", run="plain", latent=3))))


def test_a_widget_of_a_page_that_the_reader_has_left_changes_nothing(monkeypatch):
    class Params(dict[str, str]):
        to_dict, from_dict = dict[str, str].copy, dict[str, str].__init__

    monkeypatch.setattr(st, "query_params", Params(view="known", run="a"))
    change(PAGES["latents"].address, lambda now: now.to(q="typed"))
    assert st.query_params == {"view": "known", "run": "a"}
    monkeypatch.setattr(st, "query_params", Params(view="latents", run="a"))
    change(PAGES["latents"].address, lambda now: now.to(q="typed"))
    assert st.query_params["q"] == "typed"
