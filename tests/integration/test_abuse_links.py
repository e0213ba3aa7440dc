"""A member that would stay where it was put out, be many on one connection, or cost more than it pays (intruder.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness import federation, wait_until
from intruders import intruder
from load import Load
from sockets import between

if TYPE_CHECKING:
    from pathlib import Path

    from fleet import Fleet
    from harness import Daemon

GONE_S = 2.0  # the host looks at handshakes under way four times a second
PRICED = {  # a mode, and what the victim's log says of it
    "seals_nothing": "nothing in it",
    "grants_nothing": "CREDIT for nothing",
    "grants_a_byte": "floods",
    "answers_no_ping": "floods",
    "speaks_of_what_is_gone": "floods",
    "crumbles": "floods",
}


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> dict[str, Daemon]:
    victim = fleet.daemon("victim", backend=fleet.backend("http", "victim"), owner=True)
    entry = fleet.daemon("entry", peer=victim)
    wait_until(lambda: entry.offers() == {"victim"}, within=10, what="the entry sees the exit")
    return {"victim": victim, "entry": entry}


def put_out_by_ban(victim: Daemon, peer_ids: list[str]) -> None:
    for peer_id in peer_ids:
        federation("ban", peer_id, "--state-dir", str(victim.state_dir), home=victim.directory)


def put_out_by_rotation(victim: Daemon, peer_ids: list[str]) -> None:
    excepted = [option for peer_id in peer_ids for option in ("--except", peer_id)]
    state = ("--state-dir", str(victim.state_dir))
    federation("token", "rotate", "--grace", "0", *excepted, *state, home=victim.directory)


@pytest.mark.parametrize("put_out", [put_out_by_ban, put_out_by_rotation])
def test_who_is_put_out_has_no_socket_left(nodes: dict[str, Daemon], fleet: Fleet, put_out: Any, figure: Any) -> None:
    """Its link, a duplicate with a tunnel, handshakes on their way, and what peer exchange in gossip would have made."""
    victim = nodes["victim"]
    token_file = fleet.directory / f"token-{put_out.__name__}"
    token_file.write_text((victim.state_dir / "token").read_text())
    with intruder(victim, token_file, "stays") as evil:
        ready = evil.says()
        assert len(between(victim.pid, evil.pid)) >= 3  # both links and a handshake
        put_out(victim, ready["peer_ids"])
        try:
            wait_until(lambda: not between(victim.pid, evil.pid), within=GONE_S, what="no socket to it is left")
        finally:
            left = len(between(victim.pid, evil.pid))
            after = evil.end()
            figure(
                f"{put_out.__name__}: connections afterwards",
                f"{left} sockets, {after['links_open']} links open to the intruder, unknown link "
                f"{'made' if ready['victim_dialled'] else 'not made'}, served before {ready['unknown_served']}, "
                f"after {after['unknown_served']}",
            )
        assert not ready["victim_dialled"]
        assert after["links_open"] == 0
    assert nodes["entry"].offers() == {"victim"}


def test_nobody_is_many_on_one_connection(nodes: dict[str, Daemon], fleet: Fleet, figure: Any) -> None:
    """Circuits come from relays at which this node has a place, and a node that can be dialled has none."""
    with intruder(nodes["victim"], _token(nodes["victim"], fleet), "carries") as evil:
        result = evil.says()
    figure("identities over one connection", f"{result['admitted']} of {result['identities']} in {result['lasted_s']} s")
    assert result["admitted"] == 0


@pytest.mark.parametrize("mode", PRICED)
def test_what_costs_more_than_its_sender_pays_ends_the_link(
    nodes: dict[str, Daemon], fleet: Fleet, figure: Any, mode: str
) -> None:
    victim, entry = nodes["victim"], nodes["entry"]
    with Load(entry.entry(), clients=2, every_s=0.04) as load:
        wait_until(lambda: len(load.requests) >= 100, within=30, what="a steady load")
        first, cpu_s = len(load.requests), victim.cpu_s()
        with intruder(victim, _token(victim, fleet), mode) as evil:
            result = evil.says()
        cpu_s = victim.cpu_s() - cpu_s
        took = sorted(request.took_s for request in load.requests[first:])
        wait_until(lambda: len(load.requests) >= first + 50, within=30, what="it goes on")
    figure(
        mode,
        f"{result['sent']} sent, {'' if result['cut'] else 'not '}cut in {result['lasted_s']} s; victim {cpu_s:.1f} s CPU;"
        f" others p50 {took[len(took) // 2] * 1e3:.0f} ms, p99 {took[len(took) * 99 // 100] * 1e3:.0f} ms,"
        f" {len(load.failed)} failed",
    )
    assert load.failed == []
    assert result["cut"]
    lines = [line for line in victim.log().splitlines() if "it is kept away" in line and result["peer_ids"][0] in line]
    assert len(lines) == 1
    assert PRICED[mode] in lines[0]
    assert entry.offers() == {"victim"}


def test_one_member_says_that_the_token_is_retired_and_is_not_believed(nodes: dict[str, Daemon], fleet: Fleet) -> None:
    victim = nodes["victim"]
    with intruder(victim, _token(victim, fleet), "says_it_is_retired") as evil:
        assert evil.says() == {"answer": "TokenRefused"}
    wait_until(
        lambda: "said that this node's token is retired" in victim.log() or warned(victim),
        within=2,
        what="the victim heard it",
    )
    assert not warned(victim)
    assert "This node's token is no longer valid" not in victim.log()


def warned(node: Daemon) -> bool:
    return any("no longer valid" in warning for warning in node.status()["warnings"])


def _token(victim: Daemon, fleet: Fleet) -> Path:
    """What the victim has now."""
    path = fleet.directory / "token-now"
    path.write_text((victim.state_dir / "token").read_text())
    return path
