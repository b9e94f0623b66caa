"""A published run is files: they open from a disk, ask for nothing else, and tokens are text."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from apps.conftest import HOSTILE
from typing_extensions import override

from saelab.analysis.notes import Notes
from saelab.cli import main


def publish(*arguments: object) -> int:
    return main(["publish", *map(str, arguments)])


class Elements(HTMLParser):
    """What a file's elements name: scripts and other files, and handlers of events."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.files: list[str] = []
        self.handlers: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.feed(page)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src", "action", "srcset", "data"):
                self.files.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    @override
    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "site"
    Notes(runs / "signed").write(3, "label", "<b>mine</b> \u202eword")
    Notes(runs / "signed").write(3, "note", "a 'note'")
    assert publish(runs / "signed", runs / "plain", "--out", out) == 0
    return out


def test_every_file_names_only_files_of_the_site_and_runs_only_its_script(site: Path, runs: Path):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 1 + 2 * (32 + 2)
    for path in pages:
        text = path.read_text()
        found = Elements(text)
        assert found.handlers == []
        assert not found.tags & {"img", "iframe", "object", "form", "base"}
        assert text.count("<script") == 1
        for file in found.files:
            assert (path.parent / file).is_file(), (path.name, file)
        assert text.count("these rows as") == text.count('data-export="csv"')
        # Where the runs are on this machine is nobody's business.
        assert str(runs.parent) not in text
    code = (site / "saelab.js").read_text() + (site / "saelab.css").read_text()
    assert not any(word in code for word in ("http:", "https:", "@import", "eval(", "new Function"))


def test_tokens_labels_and_notes_are_text(site: Path):
    page = (site / "signed/3.html").read_text()
    shown = "".join(Elements(page).text)
    assert "a 'note'" in shown
    # A block of its own direction holds what an override in it does.
    assert '<p class="label" dir="auto">&lt;b&gt;mine&lt;/b&gt; \u202eword</p>' in page
    assert "\u202eevil" not in shown
    assert "⟨202E⟩evil" in shown
    every = [Elements(path.read_text()) for path in (site / "signed").glob("*.html")]
    texts = "".join("".join(each.text) for each in every)
    assert HOSTILE[1] in texts
    assert "add a label" not in texts


def test_what_it_takes_is_said_before_and_after(runs: Path, tmp_path: Path, capsys):
    assert publish(runs / "plain", "--out", tmp_path / "site") == 0
    out, err = capsys.readouterr()
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert out.splitlines()[-1] == str(tmp_path / "site/index.html")
    assert out.startswith(f"{len(files)} files, ")
    assert re.search(rf"The site takes about .* in {len(files)} files", err)


def test_chosen_latents_alone_are_written_and_only_they_are_linked(runs: Path, tmp_path: Path):
    (tmp_path / "names.csv").write_text("latent,label\n7,seven\n2,two\n")
    for choice in (["--latents", 7, 2], ["--list", tmp_path / "names.csv"]):
        out = tmp_path / choice[0][2:]  # pyrefly: ignore[bad-index]
        assert publish(runs / "signed", *choice, "--out", out) == 0
        pages = {path.stem for path in (out / "signed").iterdir()}
        assert pages == {"2", "7", "index", "figures"}
        found = Elements((out / "signed/2.html").read_text())
        assert [file for file in found.files if file.endswith("7.html")]
        assert not [file for file in found.files if file.startswith("?")]


def test_a_list_of_the_browser_is_published_in_its_order_with_its_comments(
    runs: Path, tmp_path: Path, capsys, monkeypatch
):
    run = shutil.copytree(runs / "plain", tmp_path / "plain")
    notes, out = Notes(run), tmp_path / "site"
    for latent, comment in ((7, "<b>so</b>"), (2, "")):
        notes.write(latent, "list", f"a b\n+\n{comment}".strip())
    # A file of that name does not hide the list.
    monkeypatch.chdir(tmp_path)
    Path("a b").write_text("x")
    assert publish(run, "--list", "a b", "--out", out) == 0
    assert {page.stem for page in (out / "plain").iterdir()} == {"2", "7", "index", "figures"}
    index, latent = ((out / "plain" / name).read_text() for name in ("index.html", "7.html"))
    assert index.index("7.html") < index.index("2.html")
    for page in (index, latent):
        assert "&lt;b&gt;so&lt;/b&gt;" in page
    capsys.readouterr()
    assert publish(run, "--list", "c", "--out", tmp_path / "none") == 2
    assert "has no list 'c'; it has a b" in capsys.readouterr().err


def test_no_page_of_an_earlier_site_stays(runs: Path, tmp_path: Path, capsys):
    out = tmp_path / "site"
    chosen = (runs / "plain", "--latents", 7, 2, "--out", out)
    assert publish(*chosen) == 0
    assert publish(*chosen) == 0
    before = (out / "index.html").stat().st_mtime_ns
    capsys.readouterr()
    assert publish(runs / "plain", "--latents", 2, "--out", out) == 2
    said = capsys.readouterr().err
    assert "not published now: plain/7.html; remove them, or give another --out." in said
    assert (out / "index.html").stat().st_mtime_ns == before
    (out / "plain/7.html").unlink()
    assert publish(runs / "plain", "--latents", 2, "--out", out) == 0


def test_what_cannot_be_published_is_one_sentence(runs: Path, tmp_path: Path, capsys, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.html").write_text("x")
    monkeypatch.setattr("feature_browser.publish.write.MOST", 16)
    for words, said in (
        ([runs / "bare"], "has no features; run `saelab features"),
        ([runs / "plain"], "has 32 latents; choose some with --latents or --list, or give --all"),
        ([runs / "plain", "--latents", 32], "no latent 32"),
        ([runs / "plain", "--latents", 1, "--all"], "Got --latents and --all; give one."),
        ([runs / "plain", runs / "signed", "--latents", 1], "of one run"),
        ([runs / "plain", "--all", "--out", tmp_path / "mine"], "holds thesis.html"),
    ):
        assert publish(*words, *([] if "--out" in words else ["--out", tmp_path / "site"])) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert not (tmp_path / "site").exists()


def test_a_circuit_leads_to_the_latents_that_are_published(circuit_runs: Path, tmp_path: Path):
    out = tmp_path / "site"
    assert publish(circuit_runs / "heads", circuit_runs / "topk", "--out", out) == 0
    (graph,) = (out / "heads").glob("circuit-*.html")
    found = Elements(graph.read_text())
    linked = [file for file in found.files if file.endswith(".html")]
    assert all((graph.parent / file).is_file() for file in linked)
    assert [file for file in linked if file.startswith("../topk/")]
    assert "svg" in found.tags
    # Names stay where the other run is not published, and lead nowhere.
    assert publish(circuit_runs / "heads", "--out", tmp_path / "alone") == 0
    alone = (tmp_path / "alone/heads" / graph.name).read_text()
    names = re.findall(r">([^<>]+)</text>", graph.read_text())
    assert names == re.findall(r">([^<>]+)</text>", alone)
    assert "../topk/" not in alone


@pytest.mark.browser
def test_it_opens_from_a_disk_and_has_keys_search_tips_and_themes(site: Path, browser):
    page = browser.new_page(color_scheme="dark")
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.goto((site / "signed/index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("mine")
    assert page.locator(".count").inner_text() == "1 of 32 latents"
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    assert [line[:2] for line in download.value.path().read_text().splitlines()] == ["La", "3,"]
    page.keyboard.press("/")
    page.keyboard.press("Enter")
    page.wait_for_url("**/3.html")
    page.keyboard.press("j")
    page.wait_for_url("**/4.html")
    page.keyboard.press("k")
    page.wait_for_url("**/3.html")
    page.locator(".on").first.hover()
    assert "of its maximum" in page.locator(".tip").inner_text()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator(".theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.keyboard.press("i")
    page.wait_for_url("**/index.html")
    assert wrong == []
    assert all(url.startswith(site.parent.as_uri()) for url in asked)
    page.close()
