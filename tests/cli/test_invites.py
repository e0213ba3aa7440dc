"""invite, approve and refuse, against a control API that notes what it is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import invites, main
from federation.cli.render import text as render
from federation.mesh.invite_codes import InviteCode
from federation.mesh.invites import MAX_USES
from federation.mesh.tokens import Token
from federation.net.dial.address import PeerAddress
from federation.ops.invites import MAX_LIFETIME_S
from tests.support.secret_parts import found_in

if TYPE_CHECKING:
    from tests.support.cli import Api

CODE = InviteCode.new(1_800_000_000, (PeerAddress("192.0.2.1", 4484), PeerAddress("2001:db8::1", 4484))).encode()
ROW = {
    "id": "c43941ad", "state": "open", "made_at": "2026-01-02T03:04:05+00:00", "expires_at": "2026-01-02T04:04:05+00:00",
    "uses": 2, "used": [], "approve": True,
}  # fmt: skip
NEW = {**ROW, "code": CODE, "command": "federation join --token-file -", "addresses": ["192.0.2.1:4484"], "note": ""}
USED = {
    **ROW, "id": "00000001", "state": "used", "approve": False, "uses": 2,
    "used": [
        {"peer_id": "12D3abcdef", "name": "b\x1b[31mx", "at": "2026-01-02T03:05:05+00:00", "confirmed": True},
        {"peer_id": "12D3fedcba", "name": "cyd", "at": "2026-01-02T03:05:05+00:00", "confirmed": False},
    ],
}  # fmt: skip
WAITS = {"peer_id": "12D3abcdef", "name": "ber\u202egen", "address": "192.0.2.9:5", "invite": "c43941ad", "waits_s": 61.0}
LIST = {"invites": [ROW, USED], "waiting": [WAITS]}


@pytest.fixture
def told(api: Api) -> Api:
    api.answers = {
        "POST invites/add": [NEW], "GET invites": [LIST], "POST invites/revoke": [LIST],
        "POST newcomers/approve": [{**LIST, "decided": WAITS}], "POST newcomers/refuse": [{**LIST, "decided": WAITS}],
    }  # fmt: skip
    return api


def test_the_code_alone_is_printed(told: Api, run: Any) -> None:
    assert run("invite", "--expires", "30m") == (0, f"{CODE}\n", "")
    assert run("invite", "--uses", "2", "--approve") == (0, f"{CODE}\n", "")
    assert json.loads(run("invite", "--expires", "7d", "--json")[1])["code"] == CODE
    assert told.seen == [
        ("POST invites/add", {"approve": False, "lifetime_s": 1800.0}),
        ("POST invites/add", {"approve": True, "uses": 2}),
        ("POST invites/add", {"approve": False, "lifetime_s": 7 * 86400.0}),
    ]


def test_what_stands_in_the_way_is_said_beside_it(told: Api, run: Any) -> None:
    told.answers["POST invites/add"] = [{**NEW, "note": "no way\x1b"}]
    assert run("invite", "--uses", "1") == (0, f"{CODE}\n", "federation: note: no way?\n")


def test_people_are_told_the_rest(told: Api, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invites, "is_terminal", lambda _stream: True)
    code, out, err = run("invite", "--uses", "2", "--approve")
    assert (code, out) == (0, f"{CODE}\n")
    for words in ("2 machines", "2026-01-02T04:04:05", "192.0.2.1:4484", "federation approve", "--revoke c43941ad"):
        assert words in err
    assert CODE not in err
    assert all(len(line) < 130 for line in err.splitlines())


@pytest.mark.parametrize(
    "words",
    [
        ("--expires", "soon"), ("--expires", "0"), ("--expires", "31d"), ("--uses", "0"), ("--uses", "-1"),
        ("--uses", "257"),
        ("--uses", "many"), ("--list", "--revoke", "all"), ("--list", "--uses", "1"), ("--revoke", "all", "--qr"),
        ("--revoke", ""), ("--revoke", "c4"), ("--uses", "1", "--qr", "--json"), ("--qr", "--json"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_unasked(told: Api, run: Any, words: tuple[str, ...]) -> None:
    code, out, err = run("invite", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert told.seen == []


def test_the_bounds_are_those_of_the_node() -> None:
    assert (invites.MAX_USES, invites.MAX_LIFETIME_S) == (MAX_USES, MAX_LIFETIME_S)


def test_a_code_does_not_travel_in_the_open(told: Api, run: Any) -> None:
    code, out, err = run("invite", "--uses", "1", "--control", "192.0.2.1:8485")
    assert (code, out) == (2, "")
    assert "plain HTTP" in err


def test_invites_and_who_waits_are_listed(told: Api, run: Any) -> None:
    code, out, _ = run("invite", "--list")
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["c43941ad", "open", "0", "of", "2", "2026-01-02", "04:04", "asked"],
        [
            "00000001",
            "used",
            "2",
            "of",
            "2",
            "2026-01-02",
            "04:04",
            "b?[31mx",
            "(abcdef),",
            "cyd",
            "(fedcba,",
            "not",
            "confirmed)",
        ],
    ]
    assert "ber?gen" in out
    assert out.isprintable() or all(line.isprintable() for line in out.splitlines())
    assert json.loads(run("invite", "--list", "--json")[1]) == LIST
    told.answers["GET invites"] = [{"invites": [], "waiting": []}]
    assert run("invite", "--list")[1] == "no invites were made here\n"


def test_revoked(told: Api, run: Any) -> None:
    assert run("invite", "--revoke", "c43941ad")[1] == "the invite c43941ad is revoked\n"
    assert run("invite", "--revoke", "all")[1] == "all open invites are revoked\n"
    assert told.seen == [("POST invites/revoke", {"id": "c43941ad"}), ("POST invites/revoke", {"id": "all"})]


def test_approve_and_refuse(told: Api, run: Any) -> None:
    out = run("approve")[1]
    assert [line.split() for line in out.splitlines()[1:2]] == [
        ["ber?gen", "12D3abcdef", "192.0.2.9:5", "c43941ad", "1", "min"]
    ]
    assert "ber?gen (12D3abcdef) is let in" in run("approve", "bergen")[1]
    assert "ber?gen (12D3abcdef) is turned away" in run("refuse", "bergen")[1]
    assert told.seen[1:] == [("POST newcomers/approve", {"peer": "bergen"}), ("POST newcomers/refuse", {"peer": "bergen"})]
    assert json.loads(run("approve", "--json")[1]) == LIST
    told.answers["GET invites"] = [{"invites": [], "waiting": []}]
    assert run("approve")[1] == "no newcomer waits here\n"
    for command in ("approve", "refuse"):
        assert run(command, " ")[0] == 2
    assert run("refuse")[0] == 2


# QR


def test_the_qr_code_follows_the_code(told: Api, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invites, "colorful", lambda _stream: True)
    monkeypatch.setattr(invites, "width", lambda: 80)
    code, out, err = run("invite", "--uses", "1", "--qr")
    assert (code, err) == (0, "")
    assert out.startswith(f"{CODE}\n\x1b[")
    assert len(out.splitlines()) > 18


def test_a_narrow_terminal_gets_fewer_addresses_or_the_reason(told: Api, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invites, "colorful", lambda _stream: True)
    monkeypatch.setattr(invites, "width", lambda: 34)
    code, out, err = run("invite", "--uses", "1", "--qr")
    assert (code, "fewer of this node's addresses" in err) == (0, True)
    monkeypatch.setattr(invites, "width", lambda: 20)
    code, out, err = run("invite", "--uses", "1", "--qr")
    assert (code, out) == (1, f"{CODE}\n")
    assert "columns, and the terminal has 20" in err


def test_a_dumb_terminal_in_ascii(told: Api, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invites, "colorful", lambda _stream: False)
    monkeypatch.setattr(invites, "is_utf8", lambda _stream: False)
    code, out, err = run("invite", "--uses", "1", "--qr")
    assert (code, out) == (1, f"{CODE}\n")
    assert "UTF-8, or colours" in err


def test_the_token_too_may_be_a_qr_code(told: Api, run: Any, state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Token.new("home")
    state.save_token(token.encode())
    told.answers["GET status"] = [{"network": {"id": token.network_id, "invite_addresses": []}}]
    monkeypatch.setattr(invites, "colorful", lambda _stream: True)
    monkeypatch.setattr(invites, "width", lambda: 80)
    code, out, err = run("invite", "--qr")
    assert (code, err) == (0, "")
    assert Token.decode(out.splitlines()[0]) == token
    assert len(out.splitlines()) > 18


def test_a_code_is_inspected_without_its_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["token", "inspect", CODE])
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (0, "")
    assert said.out == f"{render.invite_code(InviteCode.decode(CODE))}\n"


def test_a_code_shows_where_it_leads() -> None:
    code = InviteCode.decode(CODE)
    shown = render.invite_code(code)
    assert shown.splitlines() == [
        f"invite   {code.id.hex()[:8]}", "expires  2027-01-15T08:00:00+00:00, by the clock of the node that made it",
        "address  /ip4/192.0.2.1/tcp/4484", "address  /ip6/2001:db8::1/tcp/4484",
    ]  # fmt: skip
    assert found_in(shown, {"secret": code.secret, "key": code.key, "code": CODE[8:24]}) == []
