from __future__ import annotations

from pathlib import Path

import pytest

from federation.cli.grammar.parser import parse
from federation.errors import UsageError


def test_a_rotation_has_its_grace_and_who_is_left_out() -> None:
    args = parse(["token", "rotate"], "1")
    assert (args.grace, args.excepted, args.keep_banned, args.owner_key) == ("1h", [], False, None)
    args = parse(["token", "rotate", "--except", "bergen", "--except", "oslo", "--owner-key", "-", "--grace", "0"], "1")
    assert (args.grace, args.excepted, args.owner_key) == ("0", ["bergen", "oslo"], Path("-"))


def test_the_limits_of_a_clients_key_stay_texts() -> None:
    args = parse(["key", "add", "phone", "--models", "a,b", "--expires", "30d", "--rate", "60/m"], "1")
    assert (args.command, args.name, args.models, args.expires, args.rate) == ("key add", "phone", "a,b", "30d", "60/m")


@pytest.mark.parametrize("argv", [["key", "add"], ["key", "revoke"], ["unban"], ["refuse"]], ids=lambda argv: " ".join(argv))
def test_whom_it_is_about_has_to_be_said(argv: list[str]) -> None:
    with pytest.raises(UsageError, match=r"required: (NAME|PEER)"):
        parse(argv, "1")


@pytest.mark.parametrize("command", ["ban", "approve"])
def test_without_a_peer_it_shows_who_there_is(command: str) -> None:
    assert parse([command], "1").peer is None
    assert parse([command, "bergen"], "1").peer == "bergen"


def test_an_invite_is_asked_for_by_what_it_allows() -> None:
    args = parse(["invite", "--expires", "1h", "--uses", "3", "--approve"], "1")
    assert (args.expires, args.uses, args.approve, args.qr, args.list, args.revoke) == ("1h", "3", True, False, False, None)
