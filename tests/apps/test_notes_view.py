import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from apps.driving import Open, drawn
from feature_browser.data.catalogue import RunCard, read_card
from feature_browser.data.known import NOTHING
from feature_browser.data.labels import Labels, LatentNames
from feature_browser.data.reading import OpenRun, open_run
from feature_browser.draw.annotate import Keeper, told
from feature_browser.pages.latents.search import search

from saelab.analysis.notes import Note, Notes


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """A copy of `signed`, to write into."""
    return Path(shutil.copytree(runs / "signed", tmp_path / "signed"))


@pytest.fixture
def card(copy: Path) -> RunCard:
    return read_card(copy, copy.parent)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The session's state, as a plain dictionary."""
    state: dict[str, object] = {}
    monkeypatch.setattr("feature_browser.draw.annotate.st", SimpleNamespace(session_state=state))
    return state


def edit(number: int, value: str, latent: int = 5, field: str = "label") -> dict[str, object]:
    return {"id": number, "latent": latent, "field": field, "value": value}


# What the page sends


def test_edits_are_written_once_however_often_they_arrive(
    card: RunCard, session: dict[str, object]
):
    Keeper.of(card)([edit(1, "a")])
    Keeper.of(card)([edit(1, "a"), edit(2, "b"), edit(3, "1", field="bookmark")])
    Keeper.of(card)([edit(3, "1", field="bookmark")])
    assert [(e.field, e.value) for e in Notes(card.path).history(5)] == [
        ("label", "a"), ("label", "b"), ("bookmark", "1"),
    ]  # fmt: skip
    assert session["noted"] == 3


@pytest.mark.parametrize(
    "edits",
    [None, "x", [1], [{}], [edit(1, "a", latent=32)], [edit(1, "a", latent=-1)],
     [edit(1, "a") | {"value": 7}], [edit(1, "a") | {"latent": "5"}], [edit(1, "a") | {"id": "1"}]],
)  # fmt: skip
def test_what_is_not_an_edit_of_a_latent_is_not_written(
    card: RunCard, session: dict[str, object], edits
):
    Keeper.of(card)(edits)
    assert not Notes(card.path).path.exists()
    assert session == {}


def test_an_edit_that_cannot_be_kept_is_told(card: RunCard, session: dict[str, object]):
    Keeper.of(card)([edit(1, "x" * 201), edit(2, "kept")])
    ((sentence, text),) = session["note-problem"]  # pyrefly: ignore[not-iterable]
    assert "201 characters" in sentence
    assert text == "x" * 201
    assert Notes(card.path).all()[5].label == "kept"


# Names


def test_what_was_typed_while_the_run_vanished_or_was_replaced_is_told_with_its_text(
    card: RunCard, copy: Path, runs: Path, session: dict[str, object]
):
    keep = Keeper.of(card)
    shutil.rmtree(copy)
    keep([edit(1, "typed in <vain>")])
    assert "is gone" in (gone := told("?a"))
    assert "typed in &lt;vain&gt;" in gone
    shutil.copytree(runs / "plain", copy)
    keep([edit(2, "of the old run")])
    assert "is another run now" in told("?a")
    assert Notes(copy).all() == {}
    # A second pass of the same page says it again, another page does not.
    assert "is another run now" in told("?a")
    assert told("?b") == ""


def test_an_edit_that_is_taken_back_is_told(card: RunCard, session: dict[str, object]):
    keep = Keeper.of(card)
    keep([edit(1, "a")])
    keep([{**edit(2, ""), "undone": True, "was": "a"}])
    assert "label of latent 5 was taken back" in told("?a")
    assert Notes(card.path).all() == {}


def test_a_label_goes_before_the_known_feature():
    assert LatentNames(Labels({5: Note(label="mine")}), NOTHING).name(5) == "mine"
    assert LatentNames(Labels(), NOTHING).name(5) == ""


# The latent's page


def test_a_latents_page_shows_its_label_note_star_and_earlier_wordings(open_app: Open, copy: Path):
    notes = Notes(copy)
    for field, value in (("label", "<b>first</b>"), ("label", 'second "one"'), ("note", "why\nnot"),
                         ("bookmark", "1")):  # fmt: skip
        notes.write(5, field, value)
    page = drawn(open_app(copy.parent, run="signed", latent="5"))
    assert 'value="second &quot;one&quot;"' in page
    assert "why\nnot</textarea>" in page
    assert 'data-bookmark aria-pressed="true"' in page
    assert "label: &lt;b&gt;first&lt;/b&gt;" in page
    assert "<b>first" not in page
    other = drawn(open_app(copy.parent, run="signed", latent="4"))
    assert 'value=""' in other
    # Latent 5 is a neighbour of 4.
    assert "<span>second &quot;one&quot;</span>" in other


def test_a_new_edit_shows_at_once_though_pages_are_kept(open_app: Open, copy: Path):
    app = open_app(copy.parent, run="signed", latent="5")
    assert "another name" not in drawn(app)
    Notes(copy).write(5, "label", "another name")
    assert 'value="another name"' in drawn(app.run())


def test_notes_outlive_a_rebuild_of_the_features(open_app: Open, copy: Path, runs: Path):
    Notes(copy).write(5, "label", "outlives")
    shutil.copyfile(runs / "plain" / "features.h5", copy / "features.h5")
    assert 'value="outlives"' in drawn(open_app(copy.parent, run="signed", latent="5"))


def test_damaged_notes_are_said_and_the_rest_of_the_page_works(open_app: Open, copy: Path):
    (copy / "notes.sqlite").write_bytes(b"damaged, and long enough to be looked at" * 9)
    page = drawn(open_app(copy.parent, run="signed", latent="5"))
    assert "notes.sqlite cannot be read" in page
    assert "Top examples" in page
    assert " disabled" in page.split("data-bookmark")[1].split(">")[0]
    assert "31 of 32 latents" in drawn(open_app(copy.parent, run="signed", view="latents"))


def test_a_read_only_directory_is_said_before_anything_is_typed(
    open_app: Open, copy: Path, monkeypatch: pytest.MonkeyPatch
):
    Notes(copy).write(5, "label", "kept")
    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr("saelab.analysis.notes.os.access", lambda *_: False)
    page = drawn(open_app(copy.parent, run="signed", latent="5"))
    assert 'value="kept"' in page
    assert " readonly" in page
    assert "directory is read-only" in drawn(open_app(copy.parent, run="signed", latent="6"))


# All latents


def test_labelled_and_bookmarked_latents_can_be_listed_alone(open_app: Open, copy: Path):
    Notes(copy).write(9, "label", "<i>nine</i>")
    Notes(copy).write(31, "bookmark", "1")
    page = drawn(open_app(copy.parent, run="signed", view="latents", keep="labelled"))
    assert "1 of 32 latents" in page
    assert "&lt;i&gt;nine&lt;/i&gt;" in page
    # Latent 31 never fires, but something is written of it.
    page = drawn(open_app(copy.parent, run="signed", view="latents", keep="bookmarked"))
    assert ">31</a>" in page
    assert "★" in page
    none = drawn(open_app(copy.parent, run="signed", view="latents", keep="labelled", q="zzz"))
    assert "No latent is found by this search." in none


def test_without_notes_the_keys_that_make_them_are_named(open_app: Open):
    page = drawn(open_app(run="plain", view="latents", keep="labelled"))
    assert "L labels it and B bookmarks it" in page


@pytest.fixture
def run(card: RunCard) -> OpenRun:
    return open_run(card)


def test_a_search_finds_by_number_label_and_note(run: OpenRun):
    labels = Labels({3: Note(label="Rare Thing"), 4: Note(note="a rare thing too")})
    found, _ = search(run, labels, "rare thing")
    assert found["label or note"].tolist() == [3, 4]
    assert search(run, labels, "12")[0]["number"].tolist() == [12]
    assert search(run, labels, "32")[0]["number"].tolist() == []


def test_a_search_of_example_text_finds_what_a_scan_of_all_examples_finds(run: OpenRun):
    features = run.features
    example = features[7].examples["top"][0]
    words = [token.text.lower() for token in example.tokens[example.peak : example.peak + 2]]
    phrase = ("" if run.spaced else " ").join(words)
    expected = set()
    for record in features:
        for kind in ("top", "negative"):
            for one in record.examples.get(kind, []):
                line = features.file["corpus/tokens"][one.context].tolist()
                texts = [features.file.token(t).lower() for t in line]
                near = range(max(0, one.position - 16), min(len(texts), one.position + 17))
                if any(texts[at : at + 2] == words for at in near):
                    expected.add(record.latent)
    found, left_out = search(run, Labels(), phrase)
    assert 7 in expected
    # The words may also begin inside a token, which a scan of whole tokens does not see.
    assert expected <= set(found["example text"].tolist())
    assert left_out == ""


def test_text_that_is_nowhere_is_not_found_and_short_text_is_not_looked_for(run: OpenRun):
    found, left_out = search(run, Labels(), "her no such phrase")
    assert not any(map(len, found.values()))
    assert left_out == ""
    assert "needs 3 characters" in search(run, Labels(), "he")[1]


def test_a_search_that_would_read_too_many_texts_says_so(
    run: OpenRun, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("feature_browser.pages.latents.search.MOST_TEXTS", 1)
    found, left_out = search(run, Labels(), "word10")
    assert len(found["example text"]) == 0
    assert "too many to look through" in left_out


def test_the_page_says_by_what_latents_were_found(open_app: Open, copy: Path):
    Notes(copy).write(20, "label", "word10 and more")
    page = drawn(open_app(copy.parent, run="signed", view="latents", q="word10"))
    told = page.split('summary">')[1].split("</p>")[0]
    assert "1 by label or note" in told
    assert "by example text" in told
    assert "hidden:" in told


def test_names_beyond_the_sae_do_no_harm(open_app: Open, copy: Path):
    Notes(copy).write(4000, "label", "too far")
    assert "31 of 32 latents" in drawn(open_app(copy.parent, run="signed", view="latents"))


def test_latents_that_fire_on_the_text_can_be_listed_alone(open_app: Open, run: OpenRun):
    # Latent i fires on token i and on no other.
    firing = search(run, Labels(), "word14")[0]["firing on it in an example"]
    assert firing.tolist() == [14]
    page = drawn(open_app(run="signed", view="latents", q="word14", keep="firing"))
    assert "1 of 32 latents" in page


def test_what_fires_on_a_phrase_is_what_a_scan_of_the_examples_finds(run: OpenRun):
    file = run.features.file
    words = [file.token(token).lower() for token in file["corpus/tokens"][3, 8:10].tolist()]
    phrase = ("" if run.spaced else " ").join(words).strip()
    expected = set()
    for record in run.features:
        for kind in ("top", "negative"):
            for one in record.examples.get(kind, []):
                texts = [token.text.lower() for token in one.tokens]
                for at in range(len(texts) - 1):
                    if texts[at : at + 2] == words and any(
                        token.activation for token in one.tokens[at : at + 2]
                    ):
                        expected.add(record.latent)
    found = search(run, Labels(), phrase)[0]["firing on it in an example"]
    assert expected <= set(found.tolist())
    assert len(expected) == 2


def test_the_list_has_a_field_for_every_label_only_where_it_can_be_written(
    open_app: Open, copy: Path, monkeypatch
):
    Notes(copy).write(7, "label", '"quoted" <b>')
    page = drawn(open_app(copy.parent, run="signed", view="latents"))
    assert page.count('data-note="label"') == 31
    assert (
        'data-of="7" aria-label="Label of latent 7" title="" value="&quot;quoted&quot; &lt;b&gt;"'
        in page
    )
    monkeypatch.setattr(Notes, "writable", property(lambda self: False))
    page = drawn(open_app(copy.parent, run="signed", view="latents"))
    assert "data-note" not in page
    assert "&quot;quoted&quot; &lt;b&gt;</span>" in page
