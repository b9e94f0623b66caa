import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from feature_browser.draw.markup import Html, escaped, html, running
from feature_browser.draw.names import without_middle
from feature_browser.draw.numbers import activation, count, percent, real, short_count, signed
from feature_browser.draw.pictures import round_ticks
from feature_browser.draw.tokens import visible
from feature_browser.shell.launch import environment, streamlit_arguments
from streamlit.web.cli import click


def test_a_template_escapes_what_is_put_into_it():
    assert html("<b>{x}</b>", x='<i a="b">') == "<b>&lt;i a=&quot;b&quot;&gt;</b>"


def test_html_is_not_escaped_twice():
    assert html("<p>{x}</p>", x=html("<b>{y}</b>", y="&")) == "<p><b>&amp;</b></p>"


def test_html_added_to_text_is_escaped_when_it_is_used():
    assert html("{x}", x=Html("<b>") + "<i>") == "&lt;b&gt;&lt;i&gt;"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (count(9271), "9\u00a0271"),
        (short_count(9271), "9\u00a0271"),
        (short_count(508_032), "508\u00a0k"),
        (short_count(2_100_000), "2.1\u00a0M"),
        (percent(0.01824), "1.82\u00a0%"),
        (percent(0.0), "0\u00a0%"),
        (percent(1e-7), "<\u00a00.001\u00a0%"),
        (real(-0.8149), "\u22120.81"),
        (real(-0.001), "0.00"),
        (real(None), "\u2013"),
        (real(float("nan")), "\u2013"),
        (signed(4.2), "+4.20"),
        (signed(-4.2), "\u22124.20"),
        (activation(4.961), "4.96"),
        (activation(12.34), "12.3"),
        (activation(0.01234), "0.0123"),
    ],
)
def test_numbers_read_as_in_print(written: str, expected: str):
    assert written == expected


def test_a_long_name_keeps_what_tells_it_from_its_neighbours():
    assert without_middle("clt/0", 19) == "clt/0"
    short = [without_middle(f"circuit-tracer-clt/{layer}", 19) for layer in (3, 14)]
    assert short == ["circuit-t…cer-clt/3", "circuit-t…er-clt/14"]
    assert {len(text) for text in short} == {19}


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("\n", "↵"),
        ("a\tb", "a⇥b"),
        (" ", "␣"),
        ("", "‿"),
        ("\u202eevil", "⟨202E⟩evil"),
        (" her", " her"),
    ],
)
def test_invisible_characters_are_shown(token: str, shown: str):
    assert visible(token) == shown


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-2.1, 4.4, [-2, 0, 2, 4]), (0, 10.7, [0, 5, 10]), (0, 0.9, [0, 0.2, 0.4, 0.6, 0.8])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]):
    # Steps of 1, 2 or 5 times a power of ten are exact in the digits they are written with.
    assert round_ticks(low, high) == pytest.approx(expected)


def test_the_server_listens_on_this_machine_only_and_reports_nothing(tmp_path: Path):
    arguments = streamlit_arguments(tmp_path, 8600)
    assert arguments[:2] == ["feature_browser.shell.serve", "run"]
    assert arguments[-2:] == ["--", str(tmp_path)]
    assert {"--server.address=127.0.0.1", "--browser.gatherUsageStats=false"} <= set(arguments)


@pytest.mark.parametrize(
    ("error", "code"),
    [(click.Abort(), 0), (KeyboardInterrupt(), 0), (click.ClickException("no such file"), 1)],
)
def test_ctrl_c_ends_the_server_well_and_what_is_wrong_is_said(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def ended(**_: object) -> None:
        raise error

    monkeypatch.setattr("streamlit.web.cli.main", ended)
    with pytest.raises(SystemExit) as found:
        runpy.run_module("feature_browser.shell.serve", run_name="__main__")
    assert found.value.code == code
    assert ("no such file" in capsys.readouterr().err) == bool(code)


def test_numpy_multiplies_on_one_core_unless_the_reader_says_otherwise(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert environment()["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert environment()["OPENBLAS_NUM_THREADS"] == "3"


def test_the_command_line_is_made_without_streamlit():
    code = "import sys, feature_browser.shell.launch; assert 'streamlit' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listing_runs_and_reading_features_need_neither_torch_nor_a_language_model():
    assert importlib.util.find_spec("feature_browser.data.reading")
    code = (
        "import sys, feature_browser.data.catalogue, feature_browser.pages.latent.view;"
        "import feature_browser.pages.steering.view, feature_browser.pages.health.view;"
        "import feature_browser.pages.compare.view, feature_browser.pages.runs;"
        "assert not {'torch', 'transformer_lens', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_label_from_right_to_left_is_set_apart_and_a_field_has_it_as_it_is():
    label = 'שלם "x"'
    assert html("<b>{l}</b> 12", l=label) == "<b>\u2068שלם &quot;x&quot;\u2069</b> 12"
    assert html('<input value="{l}">', l=escaped(label)) == '<input value="שלם &quot;x&quot;">'


def test_a_part_of_a_text_runs_on_and_its_codes_stand_apart():
    assert running("שלם") == "שלם"
    assert running("<0xD7>ש<b>") == "<bdi>&lt;0xD7&gt;</bdi>ש<bdi>&lt;b&gt;</bdi>"
