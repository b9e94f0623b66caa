"""`saelab completion`: a script by which a shell completes verbs and options."""

import contextlib
import io
import shlex
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from saelab.cli import VERBS
from saelab.cli import main as main_of_all
from saelab.cli.help_text import Command
from saelab.cli.options import Positional
from saelab.cli.parse import HelpAsked, parse
from saelab.config import Config

SCRIPT = """\
# bash and zsh: source <(saelab completion)
[ -z "$ZSH_VERSION" ] || {{ autoload -U +X bashcompinit && bashcompinit; }}
_saelab() {{
    local here="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    local first="${{COMP_WORDS[1]}}" second="${{COMP_WORDS[2]}}" words=""
    [ "$COMP_CWORD" -gt 1 ] || first=""
    [ "$COMP_CWORD" -gt 2 ] || second=""
    # What follows an option with a list of words, or else what may stand at this place.
    case "$first $second $before" in
{values}
        *) case "$first $second" in
{places}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$here"))
}}
complete -o default -F _saelab saelab
"""


class CompletionArguments(Config):
    """Print a script that makes a shell complete verbs, options and their values with Tab.

    File names are completed if no other word fits. For this terminal:

        source <(saelab completion)

    For every later terminal, put the same line into ~/.bashrc or ~/.zshrc; or, to start faster:

        saelab completion > ~/.saelab-completion
        echo "source ~/.saelab-completion" >> ~/.bashrc

    For fish:

        saelab completion fish > ~/.config/fish/completions/saelab.fish
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], Positional("SHELL")] = "bash"
    """The shell; bash and zsh read the same script."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    if parse(CompletionArguments, "completion", arguments).shell == "fish":
        print("\n".join(_fish()))
        return 0
    places = [_case('" "', [*VERBS, "help"]), _case('"help "', VERBS)]
    values: dict[str, list[str]] = {}
    for path, command in commands():
        verb, _, choice = path.partition(" ")
        options = [name for option in command.options for name in option.names]
        # A verb without subcommands has the same options whatever its second word is.
        pattern = f'"{path}"' if choice else f'"{verb} "' if command.choices else f'"{verb} "*'
        places.append(_case(pattern, command.choices or options))
        for option in command.options:
            known = values.setdefault(f'"{verb} "*" {option.name}"', [])
            known += [word for word in option.choices if word not in known]
    lines = [_case(pattern, words) for pattern, words in values.items() if words]
    print(SCRIPT.format(values="\n".join(lines), places="\n".join(places)), end="")
    return 0


def _fish() -> Iterator[str]:
    yield "complete -c saelab -n __fish_use_subcommand -f -a help -d 'explain a verb'"
    for path, command in commands():
        verb, _, choice = path.partition(" ")
        within = f"__fish_seen_subcommand_from {verb}"
        if not choice:
            about = _fish_quoted(VERBS[verb])
            yield f"complete -c saelab -n __fish_use_subcommand -f -a {verb} -d {about}"
            for name, text in command.choices.items():
                start = f"complete -c saelab -n {_fish_quoted(within)}"
                yield f"{start} -a {name} -d {_fish_quoted(text)}"
        else:
            within += f"; and __fish_seen_subcommand_from {choice}"
        for option in command.options:
            takes = "" if option.is_switch else " -r"
            words = f" -f -a {_fish_quoted(' '.join(option.choices))}" if option.choices else ""
            for name in option.names:
                start = f"complete -c saelab -n {_fish_quoted(within)} -l {name.removeprefix('--')}"
                yield f"{start}{takes}{words}"


def _fish_quoted(text: str) -> str:
    """A text for fish, where only these two characters are special within quotation marks."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _case(pattern: str, words: Iterable[str]) -> str:
    return f"        {pattern}) words={shlex.quote(' '.join(words))} ;;"


def commands() -> Iterator[tuple[str, Command]]:
    """Every command, as typed after `saelab`, with its help."""
    for verb in VERBS:
        command = command_of(verb)
        yield verb, command
        for choice in command.choices:
            yield f"{verb} {choice}", command_of(verb, choice)


def command_of(verb: str, *more: str) -> Command:
    """The help of a verb or of its subcommand."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main_of_all([verb, *more, "--help"])
        except HelpAsked as asked:
            return asked.command
    raise AssertionError(f"{verb} has no help")
