"""Shell completion, made from the command line's own grammar: `federation completion bash`.

The scripts are plain tables of commands and options; a press of Tab starts nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.cli.grammar.parser import create_parser
from federation.cli.terminal import say

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

FILES = ("FILE", "DIR")  # the value of such an option is a path


@dataclass(frozen=True)
class Option:
    flags: tuple[str, ...]
    metavar: str | None  # None: it takes nothing
    help: str


@dataclass(frozen=True)
class Command:
    name: str  # "" is federation itself
    help: str
    options: tuple[Option, ...]
    choices: tuple[str, ...]  # words that may follow: subcommands, or an argument's values


def completion(args: Namespace) -> None:
    say({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](list(grammar())))


def grammar() -> Iterator[Command]:
    """All commands, federation itself first."""
    yield from _walk(create_parser("0"), "", "")


def _walk(parser: argparse.ArgumentParser, name: str, summary: str) -> Iterator[Command]:
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    options = tuple(
        Option(tuple(action.option_strings), None if action.nargs == 0 else str(action.metavar or ""), _plain(action.help))
        for action in parser._actions
        if action.option_strings and action.help != argparse.SUPPRESS
    )
    words = [
        str(word) for action in parser._actions if not action.option_strings and action.choices for word in action.choices
    ]
    yield Command(name, summary, options, tuple(words))
    for action in subparsers:
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for word, child in action.choices.items():
            yield from _walk(child, f"{name} {word}".strip(), _plain(summaries.get(word)))


def _plain(text: str | None) -> str:
    return " ".join((text or "").replace("%%", "%").split())


def bash(commands: list[Command]) -> str:
    """Source it, or put it into ~/.local/share/bash-completion/completions/federation."""
    rows = []
    paths = []
    for command in commands:
        words = [*command.choices, *(flag for option in command.options for flag in option.flags)]
        rows.append(f'        "{command.name}") words="{" ".join(words)}" ;;')
        paths += [flag for option in command.options if option.metavar in FILES for flag in option.flags]
    names = " | ".join(f'"{command.name}"' for command in commands if command.name)
    return f"""\
# bash completion for federation; made by `federation completion bash`
_federation() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command="" word words
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "${{command:+$command }}$word" in
            {names}) command="${{command:+$command }}$word" ;;
        esac
    done
    case "$previous" in
        {" | ".join(sorted(set(paths)))}) COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    case "$command" in
{chr(10).join(rows)}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o filenames -o bashdefault -F _federation federation"""


def zsh(commands: list[Command]) -> str:
    """Put it into a directory of $fpath as _federation."""
    rows = []
    for command in commands:
        described = [*((word, _help_of(commands, command, word)) for word in command.choices)]
        described += [(flag, option.help) for option in command.options for flag in option.flags]
        items = " ".join(_quoted(f"{word}:{text}".replace("\n", " ")) for word, text in described)
        rows.append(f"        {_quoted(command.name)}) choices=({items}) ;;")
    names = " | ".join(_quoted(command.name) for command in commands if command.name)
    paths = sorted({flag for c in commands for o in c.options if o.metavar in FILES for flag in o.flags})
    return f"""\
#compdef federation
# zsh completion for federation; made by `federation completion zsh`
_federation() {{
    local command="" word
    local -a choices
    case "${{words[CURRENT-1]}}" in
        {" | ".join(paths)}) _files; return ;;
    esac
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "${{command:+$command }}$word" in
            {names}) command="${{command:+$command }}$word" ;;
        esac
    done
    case "$command" in
{chr(10).join(rows)}
    esac
    _describe federation choices
}}
if [ "$funcstack[1]" = _federation ]; then _federation "$@"; else compdef _federation federation; fi"""


def fish(commands: list[Command]) -> str:
    """Put it into ~/.config/fish/completions/federation.fish."""
    lines = ["# fish completion for federation; made by `federation completion fish`", "complete -c federation -f"]
    for command in commands:
        path = command.name.split()
        words = set(command.choices)
        when = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in path) or "__fish_use_subcommand"
        if path and words:
            when += f"; and not __fish_seen_subcommand_from {' '.join(sorted(words))}"
        lines += [
            f"complete -c federation -n '{when}' -a {word} -d {_quoted(_help_of(commands, command, word))}"
            for word in command.choices
        ]
        for option in command.options:
            flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            takes = "" if option.metavar is None else " -r -F" if option.metavar in FILES else " -x"
            lines.append(f"complete -c federation -n '{when}' {flags}{takes} -d {_quoted(option.help)}")
    return "\n".join(lines)


def _help_of(commands: list[Command], parent: Command, word: str) -> str:
    name = f"{parent.name} {word}".strip()
    return next((command.help for command in commands if command.name == name), "")


def _quoted(text: str) -> str:
    """Quote a word for all three shells."""
    return "'" + text.replace("\\", "/").replace("'", "'\\''") + "'"
