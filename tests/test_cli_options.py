from __future__ import annotations

import re

import pytest

from federation.cli_options import JOIN_OPTIONS, JOIN_REPEATABLE, parse
from federation.config import NAMES, SWITCHES, Settings
from federation.errors import UsageError
from federation.values import parse_duration, parse_size


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
    ],
)
def test_wrong_options_are_usage_errors_that_say_where_help_is(argv: list[str], where: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"(see {where})")):
        parse(argv, "1")
