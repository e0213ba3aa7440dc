from __future__ import annotations

import pytest

from federation.cli.grammar.parser import parse
from federation.errors import UsageError


def test_a_service_takes_all_options_of_join() -> None:
    words = ["--backend", "a", "--backend", "b", "--no-mdns", "--token-file", "-", "--state-dir", "/s"]
    join, install = parse(["join", *words], "1"), parse(["service", "install", "--user", *words], "1")
    own = {"command", "parser", "user", "system", "print"}
    assert {name: value for name, value in vars(install).items() if name not in own} == {
        name: value for name, value in vars(join).items() if name not in own
    }
    assert (install.command, install.user, install.system, install.print) == ("service install", True, False, False)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["service"], None),
        (["service", "status", "--json"], "service status"),
        (["service", "logs", "-f"], "service logs"),
        (["service", "uninstall", "--system"], "service uninstall"),
        (["update", "--check"], "update"),
        (["uninstall", "--dry-run"], "uninstall"),
        (["invite", "--install", "--address", "h"], "invite"),
    ],
)
def test_commands(words: list[str], command: str | None) -> None:
    assert parse(words, "1").command == command


def test_a_service_is_one_s_own_or_the_machine_s() -> None:
    with pytest.raises(UsageError, match="not allowed with"):
        parse(["service", "install", "--user", "--system"], "1")
