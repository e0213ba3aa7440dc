from __future__ import annotations

from typing import Any

import pytest

from federation.cli.render import text as render
from federation.mesh.tokens import Token

PEER = "12D3KooWJ9VnGqVYFbQkPNtHRjnbTnBCHHMsQPUVWAxqgUzRYrbt"
SERVICES = {"default": {"nodes": 3, "up": 2}, "embed": {"nodes": 1, "up": 0}, "chat": {"nodes": 0, "up": 0}}
STATUS: dict[str, Any] = {
    "node": {
        "peer_id": PEER,
        "name": "alpha",
        "version": "0.1.0",
        "addresses": [f"/ip4/192.168.1.{i}/tcp/4484/p2p/{PEER}" for i in range(1, 9)],
        "listens": {"default": "127.0.0.1:8484", "embed": "127.0.0.1:8486"},
        "p2p": "0.0.0.0:4484",
        "control": "127.0.0.1:8485",
        "services": {"default": True, "embed": False},
        "gpu": {"source": "nvml", "note": "", "total_vram": 24 * 1024**3, "available_vram": 18 * 1024**3},
        "in_flight": 2,
        "draining": False,
        "uptime_s": 3700.0,
        "state_dir": "/home/x/.local/state/federation",
        "pid": 1,
    },
    "network": {"id": "5f3a", "name": "homelab", "peers_online": 3, "peers_known": 4, "services": SERVICES},
    "connections": {"now": 3, "total": 1204, "failed": 0, "retried": 2},
    "warnings": [],
}


def peer(**values: Any) -> dict[str, Any]:
    return {
        "peer_id": PEER, "name": "beta", "self": False, "online": True, "state": "online", "last_seen_age_s": 2.0,
        "available_vram": 8 * 1024**3, "total_vram": 16 * 1024**3, "in_flight": 1, "served": 9, "rtt_ms": 1.25,
        "services": {"default": True}, "path": "direct",
    } | values  # fmt: skip


def shown(*peers: dict[str, Any], color: bool = False, width: int = 120) -> list[str]:
    return render.peers({"peers": list(peers)}, color=color, width=width).splitlines()


# status


@pytest.mark.parametrize(
    ("paths", "shown"),
    [({}, ""), ({"direct": 3}, ""), ({"relayed": 1, "direct": 2, "punched": 4}, "; links: 2 direct, 4 punched, 1 relayed")],
)
def test_status_says_how_the_links_go_unless_all_are_direct(paths: dict[str, int], shown: str) -> None:
    text = render.status({**STATUS, "network": {**STATUS["network"], "paths": paths}}, color=False)
    assert f"3 of 4 nodes online{shown}\n" in text


def test_status_says_what_a_person_asks() -> None:
    text = render.status(STATUS, color=False)
    for part in (
        "alpha", PEER, "federation 0.1.0, up 1 h 1 min", "homelab (5f3a), 3 of 4 nodes online",
        "127.0.0.1:8484 (default)", "127.0.0.1:8486 (embed)", "default up, embed down", "127.0.0.1:8485",
        "18.0 GiB of 24.0 GiB free (nvml)", "/ip4/192.168.1.1/tcp/4484, /ip4/192.168.1.2/tcp/4484 and 6 more",
        "services chat offered by nobody, default up on 2 of 3 nodes, embed down",
        "3 connections now, 1204 in all, 0 failed, 2 retried", "/home/x/.local/state/federation",
    ):  # fmt: skip
        assert part in text


def test_status_fits_on_one_screen_whatever_happens() -> None:
    many = {**STATUS, "warnings": ["w" * 300] * 50}
    many["node"] = STATUS["node"] | {"addresses": STATUS["node"]["addresses"] * 10, "draining": True}
    lines = render.status(many, color=False).splitlines()
    rows = sum(-(-len(line) // 80) for line in lines)  # as an 80 column terminal wraps them
    assert rows <= 24
    assert "46 more warnings" in lines[-1]


def test_status_of_a_node_of_another_version_is_shown_as_far_as_it_goes() -> None:
    assert render.status({}, color=False)
    assert render.status({"node": {"name": "x", "gpu": None, "services": None}}, color=True)


def test_an_entry_only_and_no_gpu() -> None:
    node = STATUS["node"] | {"services": {}, "gpu": {"source": "none", "note": "no NVML library"}}
    text = render.status({**STATUS, "node": node}, color=False)
    assert "entry only" in text
    assert "gpu      none (no NVML library)" in text


def test_colours_mean_something() -> None:
    text = render.status({**STATUS, "warnings": ["look"]}, color=True)
    assert "\x1b[32mup\x1b[0m" in text
    assert "\x1b[33mdown\x1b[0m" in text
    assert "\x1b[33mwarning: look\x1b[0m" in text
    assert "\x1b" not in render.status({**STATUS, "warnings": ["look"]}, color=False)


# peers


def test_peers_are_a_table_this_node_first() -> None:
    lines = shown(
        peer(name="zeta", online=False, state="offline", rtt_ms=None, last_seen_age_s=90.0),
        peer(name="gamma", services={"default": True, "embed": False}),
        peer(name="me", self=True, total_vram=0, available_vram=0),
    )
    headings = "NAME PEER STATE SERVICES VRAM_USED VRAM_FREE HERE BUSY SERVED PATH RTT VERSION SEEN"
    assert lines[0].replace("VRAM ", "VRAM_").split() == headings.split()
    assert [line[:7].rstrip() for line in lines[1:]] == ["* me", "  gamma", "  zeta"]
    gamma = lines[2]
    for part in (PEER[-6:], "online", "default,embed!", "8.0/16.0 GiB", "1.2 ms", "2 s"):
        assert part in gamma
    assert "####...." in gamma  # half of it is in use
    assert "1 min" in lines[3]


def test_a_narrow_table_has_what_differs() -> None:
    assert "VERSION" not in shown(peer(), peer(self=True), width=80)[0]
    assert "VERSION" in shown(peer(), peer(self=True, version="0.0.1"), width=100)[0]
    assert "PATH" not in shown(peer(path="direct"), width=80)[0]
    assert "relayed" in shown(peer(path="relayed"), width=100)[1]


def test_status_shows_rates() -> None:
    rates = {"connections_per_s": 3.25, "received_per_s": 2048, "delivered_per_s": 3 * 1024**2}
    assert "3.2 connections/s, 2.0 KiB/s up, 3.0 MiB/s down" in render.status({**STATUS, "rates": rates}, color=False)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("online", "32"),
        ("draining", "33"),
        ("backend down", "33"),
        ("suspect", "33"),
        ("offline", "31"),
        ("left", "31"),
        ("unreachable", "31"),
    ],
)
def test_states_have_colours(state: str, code: str) -> None:
    (line,) = shown(peer(state=state), color=True)[1:]
    assert f"\x1b[{code}m{state}" in line
    assert "\x1b" not in "".join(shown(peer(state=state)))


def test_an_unknown_state_is_shown_plain() -> None:
    assert "meditating" in shown(peer(state="meditating"), color=True)[1]


def test_nothing_is_cut_on_80_columns() -> None:
    assert "…" not in "".join(
        shown(peer(name="gpu-box-1", state="backend down", served=12345, last_seen_age_s=59), width=80)
    )


def test_free_vram_has_the_unit_it_needs() -> None:
    assert "512.0 MiB/16.0 GiB" in shown(peer(available_vram=512 * 1024**2))[1]
    assert "8.0 GiB  " in shown(peer(total_vram=0))[1]  # announced by --vram


def test_the_table_fits_the_terminal_and_keeps_a_line_a_peer() -> None:
    for width in (20, 60, 80, 120):
        lines = shown(peer(name="n" * 64), peer(self=True), width=width)
        assert len(lines) == 3
        assert max(map(len, lines)) <= width


def test_names_from_the_network_cannot_drive_the_terminal() -> None:
    evil = "x\x1b[2J\r\n\u202e[red]y[/red]"
    text = "\n".join(shown(peer(name=evil, state=evil, services={evil: True}), width=200))
    assert len(text.splitlines()) == 2
    assert not {"\x1b", "\r", "\u202e"} & set(text)
    assert "[red]y[/red]" in text  # nor is it markup
    status = render.status({**STATUS, "node": STATUS["node"] | {"name": evil}, "warnings": [evil]}, color=False)
    assert not {"\x1b", "\r", "\u202e"} & set(status)


# token and ready


def test_a_token_is_shown_without_its_secret() -> None:
    token = Token.new("lab", ["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/2"])
    text = render.token(token)
    assert text.splitlines()[:3] == [
        f"network  {token.network_id}", "name     lab", "owner    none; it cannot be rotated",
    ]  # fmt: skip
    assert [line.split()[1] for line in text.splitlines()[3:]] == list(token.addresses)
    assert token.secret.hex() not in text
    assert token.encode() not in text
    assert "none" in render.token(Token.new())
    assert f"owner    {'ab' * 32}\n" in render.token(Token.new(owner=b"\xab" * 32))


def test_ready_says_where_clients_connect_and_what_comes_next() -> None:
    text = render.ready(STATUS, "next step")
    for part in ("ready: alpha", "127.0.0.1:8484 (service default)", "default up, embed down", "homelab (5f3a)"):
        assert part in text
    assert text.endswith("\nnext step")
    assert "saved in /s/token" in render.ready(STATUS, "", token_file="/s/token")


# Numbers


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (24 * 1024**3, "24.0 GiB"),
        (2 * 1024**4, "2.0 TiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_sizes(n: int, text: str) -> None:
    assert render.size(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3660, "1 h 1 min"), (93600, "1 d 2 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_long_texts_are_cut() -> None:
    assert render.plain("x" * 65) == "x" * 63 + "…"
    assert render.plain(None) == ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"dialable": True, "via": [], "relay": {"places": 0}}, ""),
        ({"dialable": True, "via": [], "relay": {"places": 3}}, ", relays for 3"),
        ({"dialable": False, "via": ["a"], "relay": None}, ", reached through 1 relay"),
        ({"dialable": False, "via": ["a", "b"], "relay": None}, ", reached through 2 relays"),
        ({"dialable": False, "via": [], "relay": None}, ", others cannot dial it and no member relays"),
        ({"dialable": None, "via": [], "relay": None}, ""),
    ],
)
def test_status_says_how_others_get_here(fields: dict[str, Any], said: str) -> None:
    text = render.status({"node": {"p2p": "0.0.0.0:4484", "addresses": ["/ip4/192.0.2.1/tcp/4484"]} | fields}, color=False)
    (line,) = [line for line in text.splitlines() if line.startswith("p2p")]
    assert line == f"p2p      0.0.0.0:4484, announced as /ip4/192.0.2.1/tcp/4484{said}"


def test_every_listener_is_named_and_of_an_older_daemon_one_a_service() -> None:
    node = {"listens": {"default": "127.0.0.1:8484"}}
    assert "clients  127.0.0.1:8484 (default)" in render.status({"node": node}, color=False)
    node |= {"listeners": [{"service": "default", "address": at} for at in ("127.0.0.1:8484", "[::1]:8484", "unix:/run/x")]}
    shown = render.status({"node": node}, color=False)
    assert "clients  127.0.0.1:8484 (default), [::1]:8484 (default), unix:/run/x (default)" in shown
