"""The parts that all commands are made of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from federation.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises instead of printing, and takes no abbreviated options: a new version would change their meaning."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own words list all commands there are."""
        if action.choices is not None and value not in action.choices:
            from difflib import get_close_matches  # imported only after a typing error

            known = [str(choice) for choice in action.choices]
            near = get_close_matches(str(value), known, 1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(known)}" if len(known) < 4 else ""
            self.error(f"there is no {str(action.metavar).lower()} {value!r}" + (f"; {hint}" if hint else ""))


class Formatter(argparse.HelpFormatter):
    """Keeps paragraphs apart."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))


def asking(
    commands: Any, name: str, summary: str, example: str, description: str = "", *, json: bool = False, operands: str = ""
) -> argparse.ArgumentParser:
    parser = command(commands, name, summary, description, operands=operands, epilog=f"example: {example}")
    if json:
        parser.add_argument("--json", action="store_true", help="print exactly what the control API returns")
    parser.add_argument(
        "--control",
        metavar="HOST:PORT",
        help="ask the node there (https://HOST:PORT: by TLS); it has to prove that it has the key in "
        "FEDERATION_CONTROL_KEY, or in the state directory",
    )
    add_state_dir(parser, "ask the daemon that uses this state directory [your own daemon's]")
    return parser


def add_state_dir(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --state-dir, see client.state_dir. The option of `join` is a setting."""
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help=text)


def command(
    commands: Any, name: str, summary: str, description: str = "", *, operands: str = "", **kwargs: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name.split()[-1],
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        prog=f"federation {name}",
        usage=f"federation {name} {operands}[OPTIONS]",
        **kwargs,
    )
    parser.set_defaults(command=name, parser=parser)
    return parser
