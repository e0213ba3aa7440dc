"""Each command of ours that a page shows is one that the command line has, with options that it takes.

Looked at are blocks of code and texts in backticks, where a line, or what follows a pipe, `&&`, `;`, `$(`, sudo, ssh or
docker, begins with `federation`. docs/cli.md is made of the grammar itself.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from markdown_it import MarkdownIt

from federation.cli.grammar.parser import create_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for part in (".", "docs", "examples") for path in (ROOT / part).glob("*.md") if path.name != "CHANGELOG.md"
)
# What may stand before the name: a prompt, the shell's words, other commands that run ours, variables.
_BEFORE = (
    r"(?:^|[|;&(]|\b(?:sudo|nohup|exec|do|then|eval)\s|\bssh\s+\S+\s|\bdocker\s+\S.*?\s\S+\s|[\w.-]*[$#]\s|\b[A-Z_]+=\S*\s)"
)
_COMMAND = re.compile(_BEFORE + r"\s*[\"']?(?:\S*/bin/)?federation\s+([^|;&#)`\n]*)", re.MULTILINE)
WORDS = {"COMMAND"}  # stand for one


def code(text: str) -> Iterator[str]:
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in {"fence", "code_block"}:
            yield token.content.replace("\\\n", " ")
        for child in token.children or []:
            if child.type == "code_inline":
                yield child.content


def commands(text: str) -> list[str]:
    return [found.strip() for part in code(text) for found in _COMMAND.findall(part)]


def words_of(command: str) -> list[str]:
    try:
        return shlex.split(command.replace("[", " ").replace("]", " "))
    except ValueError:  # the end of a quote is cut off
        return command.split()


def wrong(command: str) -> str:
    """What the grammar lacks of it; empty if nothing."""
    parser, words = create_parser("VERSION"), words_of(command)
    while words and (below := [it for it in parser._actions if isinstance(it, argparse._SubParsersAction)]):
        if words[0].startswith("-") or words[0] in WORDS:
            break
        if words[0] not in below[0].choices:
            return words[0]
        parser = below[0].choices[words.pop(0)]
    known = {option for action in parser._actions for option in action.option_strings}
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return next((option for option in options if option not in known), "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_there(page: Path) -> None:
    assert not [(command, lacks) for command in commands(page.read_text()) if (lacks := wrong(command))]


def test_commands_are_found_on_the_pages() -> None:
    found = [command for page in PAGES for command in commands(page.read_text())]
    assert len(found) > 60
    assert {"join", "token", "peers", "key", "doctor"} <= {command.split(" ")[0] for command in found}


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("```\nfederation joyn --backend x\n```", "joyn"),
        ("```\nathens$ federation join --bakend x    # federation nothing\n```", "--bakend"),
        ("```\nfederation invite | ssh bergen federation join --token-fil -\n```", "--token-fil"),
        ("```\nfederation join \\\n    --backend x --hodl 3\n```", "--hodl"),
        ("Run `sudo federation token rotat`", "rotat"),
        ('```\neval "$(federation completon bash)"\n```', "completon"),
        ("`docker exec NAME federation staus`", "staus"),
        ("`FEDERATION_CONTROL_KEY=x federation leev`", "leev"),
        ("```\nfederation join --backend x\n```", ""),
        ("`federation COMMAND --help`", ""),
        ("`federation --help`", ""),
    ],
)
def test_what_is_wrong_is_named(text: str, lacks: str) -> None:
    found = commands(text)
    assert found
    assert next((it for it in map(wrong, found) if it), "") == lacks


def test_what_is_no_command_of_ours_is_passed_over() -> None:
    assert not commands(
        "federation nothing\n\n```\n  next on another: federation nothing\ncd federation nothing\n```\n`the federation x`"
    )
