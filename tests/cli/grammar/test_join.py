from __future__ import annotations

import re

from federation.cli.grammar.join import JOIN_OPTIONS, JOIN_REPEATABLE
from federation.cli.grammar.parser import parse
from federation.config import NAMES, SWITCHES, Settings
from federation.units import parse_duration, parse_size


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
