"""Help and mistakes of every verb: what is said, in which order, and how wide."""

import shlex
import subprocess
import textwrap

import pytest

from saelab.cli import VERBS, main
from saelab.cli.completion import commands
from saelab.cli.help_text import Command, help_text
from saelab.cli.options import Metavar, nearest, options_of
from saelab.cli.parse import HelpAsked, read
from saelab.config import Config, UsageError

COMMANDS = dict(commands())
WITH_OPTIONS = {path: c for path, c in COMMANDS.items() if c.options and not c.choices}


def every(chosen):
    return pytest.mark.parametrize("command", chosen.values(), ids=chosen.keys())


def refusal(command, arguments):
    with pytest.raises(UsageError) as refused:
        read(command, arguments)
    return str(refused.value)


@pytest.mark.parametrize("width", [80, 120])
@every(COMMANDS)
def test_help_fits_its_width_and_leaves_nothing_out(command, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = help_text(command)
    assert max(map(len, text.splitlines())) <= width
    assert text.startswith(f"usage: {command.name}")
    for option in command.options:
        assert option.field.description, option.name
        assert f"\n  {option.name}" in text
        assert f"\n{option.heading}:\n" in text
    for choice in command.choices:
        assert f"\n  {choice} " in text
    # Words of Python and of boxes that say nothing to a reader.
    assert not any(sign in text for sign in ("None", "STR", "INT", "│", "─"))


@every(COMMANDS)
def test_paragraphs_stay_apart_and_are_filled(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    blocks = help_text(command).split("\n\n")
    about = command.about.strip().split("\n\n")
    assert len(blocks) == 1 + len(about) + bool(command.choices) + len(
        {option.heading for option in command.options}
    )
    for block in blocks[1 : 1 + len(about)]:
        if not block.startswith("  "):
            assert block == textwrap.fill(
                block.replace("\n", " "), 80, break_long_words=False, break_on_hyphens=False
            )


def test_every_default_is_shown():
    class Values(Config):
        """All kinds."""

        count: int = 3
        share: float = 0.03125
        names: tuple[str, ...] = ("a", "b")
        on: bool = True
        off: bool = False
        nothing: float | None = None
        unbounded: float | None = 1.0

    text = help_text(Command("saelab x", "All kinds.", options_of(Values)))
    for shown in ("(default: 3)", "(default: 0.03125)", "(default: a b)", "(default: --on)"):
        assert shown in text
    assert "--on, --no-on" in text
    assert "--nothing NUMBER\n" in text
    assert "--unbounded NUMBER or none" in text
    assert "--no-off" not in text
    assert text.count("default") == 5


def test_the_options_of_training_stand_in_four_parts():
    headings = dict.fromkeys(option.heading for option in COMMANDS["train topk"].options)
    assert list(headings) == ["Data", "SAE", "Optimisation", "Run"]
    of = {option.name: option.heading for option in COMMANDS["train topk"].options}
    assert of["--activations"] == of["--live"] == of["--outliers"] == "Data"
    assert of["--d-sae"] == of["--k"] == of["--skip"] == "SAE"
    assert of["--lr"] == of["--objective"] == of["--dead-after"] == "Optimisation"
    assert of["--seed"] == of["--out"] == of["--device"] == "Run"


@every(WITH_OPTIONS)
def test_a_misspelt_option_is_answered_first_with_the_nearest(command):
    for option in command.options:
        if option.positional or len(option.name) < 7:
            continue
        i = len(option.name) // 2
        wrong = option.name[:i] + option.name[i + 1] + option.name[i] + option.name[i + 2 :]
        if wrong == option.name:
            continue
        said = refusal(command, [wrong, "3"])
        first, _, rest = said.partition("? ")
        start = f"{wrong} is no option of `{command.name}`; did you mean {option.name}"
        assert first.removesuffix("?") == start
        assert f"{option.name} is missing" not in rest


@every(WITH_OPTIONS)
def test_all_that_is_missing_is_named_with_an_example(command):
    needed = [option.name for option in command.options if option.field.is_required()]
    if not needed:
        return
    said = refusal(command, [])
    assert all(name in said for name in needed)
    assert f"an example: `{command.example}`" in said


@every(WITH_OPTIONS)
def test_a_bad_value_is_told_with_what_is_allowed(command):
    for option in command.options:
        kinds = {k for k in option.kinds if k in (int, float)}
        if not (kinds or option.choices):
            continue
        said = refusal(command, [*([] if option.positional else [option.name]), "many?"])
        assert f"{option.name} 'many?' is not possible; " in said
        assert option.allowed in said
        named = [] if option.positional else [option.name]
        assert not named or f"{option.name} needs a value" in refusal(command, named)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tpok"], "'tpok' is no VARIANT of `saelab train`; did you mean topk?"),
        (["train"], "VARIANT comes first, as in `saelab train topk "),
        (["train", "--d-sae", "3"], "VARIANT comes first, as in `saelab train topk "),
        (["trian", "topk"], "'trian' is no VERB of `saelab`; did you mean train?"),
        (["bench", "stor"], "'stor' is no BENCHMARK of `saelab bench`; did you mean store?"),
        (["train", "topk", "--learning-rate", "1"], "`saelab train topk`; did you mean --lr?"),
        (["train", "topk", "--zz", "1"], "`saelab train topk --help` lists them."),
        (["train", "topk", "--k", "4.5"], "--k '4.5' is not possible; give a whole number"),
        (["bench", "live", "--steps", "9"], "greater than 0 that is a multiple of 8."),
        (["browse", "--port", "0"], "give a whole number from 1 up to 65535."),
        (["evaluate", "r", "--suite", "coer"], "did you mean core? It takes core or full."),
        (["show", "a", "b"], "'b' belongs to no option of `saelab show`"),
        (["show", "--json=no", "a"], "--json takes no value; leave out =no."),
        (["steer", "--latents", "1", "-2"], "--latents '1 -2' is not possible"),
        (["evaluate", ""], "RUN is empty; give a path.\n"),
        (["evaluate", "runs/a", "--model", ""], "--model is empty; give text, or leave it out.\n"),
        (["evaluate", "--jsn", "r"], "did you mean --json?\n"),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_values_of_every_kind_are_read():
    command = COMMANDS["steer"]
    words = ["run", "--latents", "1", "2", "--strength", "-4", "--prompt=--x", "--positions", "7"]
    values = read(command, [*words, "--n_tokens", "3", "--dose", "--latents", "5"])
    assert values["latents"] == (1, 2, 5)
    assert values["strength"] == -4
    assert values["prompt"] == "--x"
    assert values["positions"] == 7
    assert values["n_tokens"] == 3
    assert values["dose"] is True
    assert str(values["run"]) == "run"
    assert read(command, ["--positions", "all", "--", "-run"])["positions"] == "all"
    training = read(COMMANDS["train topk"], shlex.split(COMMANDS["train topk"].example)[3:])
    assert training["d_sae"] == 1024
    more = [*shlex.split(COMMANDS["train topk"].example)[3:], "--clip-norm", "none", "--k", "9"]
    training = read(COMMANDS["train topk"], [*more, "--no-normalise", "--k", "8"])
    assert training["clip_norm"] is None
    assert training["normalise"] is False
    assert training["k"] == 8


def test_help_is_asked_for_in_three_ways(capsys):
    said = []
    for arguments in (
        ["help", "train", "topk"],
        ["train", "topk", "-h"],
        ["train", "topk", "--k", "3", "--help"],
    ):
        with pytest.raises(HelpAsked) as asked:
            main(arguments)
        assert asked.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] == help_text(COMMANDS["train topk"]) + "\n"


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"], ["help", "help"]])
def test_the_overview_names_every_verb(arguments, capsys):
    try:
        code = main(arguments)
    except HelpAsked as asked:
        code = asked.code
    assert code == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)


def test_a_metavar_stands_for_the_value():
    assert Metavar("HOOK") in COMMANDS["harvest"].options[1].field.metadata
    assert "--sites HOOK ..." in help_text(COMMANDS["harvest"])


def test_nothing_is_near_to_nonsense():
    assert nearest("--zzz", ["--site", "--k"]) is None
    assert nearest("--tokens", ["--site", "--n-tokens"]) == "--n-tokens"
    assert nearest("-k", ["--site", "--k"]) == "--k"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("saelab trai", "train"),
        ("saelab help eva", "evaluate"),
        ("saelab train top", "topk"),
        ("saelab train topk --n-t", "--n-tokens"),
        ("saelab train topk --site x --step au", "auto autograd"),
        ("saelab evaluate runs/topk --sui", "--suite"),
        ("saelab bench variants --seed", "--seeds"),
        ("saelab show runs/to", ""),
    ],
)
def test_bash_completes_words(typed, offered, capsys, tmp_path):
    assert main(["completion"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    words = " ".join(map(shlex.quote, typed.split(" ")))
    asked = f"""
source {shlex.quote(str(script))}
complete -p saelab >/dev/null || exit 1
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _saelab; echo "${{COMPREPLY[*]}}"
"""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() == offered
