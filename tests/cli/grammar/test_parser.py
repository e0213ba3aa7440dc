from __future__ import annotations

import argparse
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from federation.cli.grammar.parser import create_parser, parse

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ([], None),
        (["token"], None),
        (["join"], "join"),
        (["token", "new"], "token new"),
        (["token", "inspect", "-"], "token inspect"),
        (["status", "--json"], "status"),
        (["peers", "--control", "h:1"], "peers"),
        (["invite"], "invite"),
        (["version"], "version"),
    ],
)
def test_commands(argv: list[str], command: str | None) -> None:
    assert parse(argv, "1").command == command


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    children = [
        child
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for child in action.choices.values()
    ]
    for child in children:
        yield from commands(child)
    if not children:
        yield parser


@pytest.mark.parametrize("parser", [*commands(create_parser("1"))], ids=lambda parser: parser.prog)
def test_every_command_has_an_example_that_is_one(parser: argparse.ArgumentParser) -> None:
    example = (parser.epilog or "").rpartition("example: ")[2].strip()
    assert parser.prog in example
    for run in re.split(r"&&|\|\||\|", example.strip(')"')):
        words = shlex.split(run.partition("<")[0].partition(">")[0].replace('eval "$(', ""))
        if words[0] == "federation":
            parse(words[1:], "1")
