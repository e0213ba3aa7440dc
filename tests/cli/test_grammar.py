from __future__ import annotations

import argparse
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from federation.cli.grammar import JOIN_OPTIONS, JOIN_REPEATABLE, create_parser, parse
from federation.config import NAMES, SWITCHES, Settings
from federation.errors import UsageError
from federation.units import parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_every_setting_is_an_option_of_the_same_name() -> None:
    options = {field: flag for field, flag, *_ in (*JOIN_OPTIONS, *JOIN_REPEATABLE)} | {
        name: f"--{name.replace('_', '-')}" for name in (*SWITCHES, "dht", "port_mapping")
    }
    assert options == {field: f"--{name.replace('_', '-')}" for field, name in NAMES.items()}


def test_the_help_tells_the_real_defaults() -> None:
    default = Settings()
    for field, flag, _, text in (*JOIN_OPTIONS, *JOIN_REPEATABLE):
        said = re.search(r"\[([^\]]*)\]$", text)
        if said is None or said[1].startswith("the "):
            continue
        value = getattr(default, field)
        if isinstance(value, tuple):
            assert [said[1]] == [str(item.address) for item in value], flag
        elif field.endswith("_s"):
            assert parse_duration(said[1]) == value, flag
        elif field.endswith("_bytes"):
            assert parse_size(said[1]) == value, flag
        else:
            assert said[1] == str(getattr(value, "value", value)), flag


def test_options_reach_the_command_as_texts() -> None:
    args = parse(["join", "--hold", "5", "--backend", "a", "--backend", "b", "--no-mdns", "--token", "-"], "1")
    assert (args.command, args.hold_s, args.backends, args.mdns, args.token) == ("join", "5", ["a", "b"], False, "-")
    assert args.listens is args.name is None


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


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["join", "--nope"], "federation join --help"),
        (["join", "--hol", "5"], "federation join --help"),  # no abbreviations
        (["join", "--hold"], "federation join --help"),
        (["join", "extra"], "federation join --help"),
        (["token", "new", "extra"], "federation token new --help"),
        (["token", "gnu"], "federation token --help"),
        (["jion"], "federation --help"),
        (["--nope"], "federation --help"),
        (["status", "--json=1"], "federation status --help"),
        (["completion", "tcsh"], "federation completion --help"),
    ],
)
def test_wrong_options_are_usage_errors_that_say_where_help_is(argv: list[str], where: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"(see {where})")):
        parse(argv, "1")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["statsu"], "there is no command 'statsu'; did you mean status? ("),
        (["nothing-like-it"], "there is no command 'nothing-like-it' ("),
        (["completion", "tcsh"], "there is no shell 'tcsh'; it is one of bash, zsh, fish ("),
    ],
)
def test_who_mistyped_is_told_what_there_is(argv: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        parse(argv, "1")


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
