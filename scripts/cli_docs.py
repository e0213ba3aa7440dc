"""Writes docs/cli.md from the command line's grammar: `.venv/bin/python scripts/cli_docs.py`. A test keeps it current."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["COLUMNS"] = "100"  # the width of the help texts below

from federation.cli.grammar.parser import create_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[1] / "docs/cli.md"
HEAD = """\
# The command line

Made from `federation --help` and `federation COMMAND --help` by `scripts/cli_docs.py`; do not edit.

Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted. Every command that asks a node finds the one that runs on
this machine by itself; `--state-dir` or `--control` names another. `--json` prints what the control API answers.
"""


def page() -> str:
    parts = [HEAD]
    for name, parser in commands(create_parser("VERSION")):
        title = f"federation {name}".strip()
        parts.append(f"## {title}\n\n```\n{parser.format_help().strip()}\n```\n")
    return re.sub(r"[ \t]+$", "", "\n".join(parts), flags=re.M)


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The command and all below it, as (words, parser)."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from commands(child, f"{name} {word}".strip())


if __name__ == "__main__":
    PAGE.write_text(page())
