"""The `federation ...` commands that README, docs/ and examples/ show; docs/cli.md is made from the grammar itself."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from federation.cli.grammar.parser import create_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.S | re.M)


def commands() -> list[tuple[str, ...]]:
    """The words behind `federation`, each command once, in the order in which they are shown."""
    (known,) = (action.choices for action in create_parser("0")._actions if action.dest == "==SUPPRESS==")
    groups = {"token": "token (?:new|inspect|rotate)", "owner": "owner (?:show|export)"}
    names = "|".join(groups.get(name, name) for name in known or ())
    find = re.compile(rf"\bfederation ((?:{names})\b[^#|<>&()`\"]*)")
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").iterdir())]
    lines = [line for path in texts if path.name != "cli.md" for line in _lines(path)]
    return list(dict.fromkeys(tuple(shlex.split(words)) for line in lines for words in find.findall(line)))


def _lines(path: Path) -> Iterator[str]:
    text = path.read_text()
    if path.suffix != ".md":
        yield from text.splitlines()
        return
    for block in FENCED.findall(text):
        yield from block.splitlines()
    for code in re.findall(r"`([^`]+)`", FENCED.sub("", text)):
        yield " ".join(code.split())  # one that goes over the end of a line too
