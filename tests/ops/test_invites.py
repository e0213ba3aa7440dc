"""Invites as people make, list and revoke them at a node that does not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import TypeAdapter

from federation.errors import NotFound
from federation.mesh.invite_codes import InviteCode
from federation.net.dial.address import PeerAddress
from federation.ops import schemas
from federation.ops.invites import InviteWish
from tests.support.nodes import add, idle_node
from tests.support.secret_parts import found_in

if TYPE_CHECKING:
    from pathlib import Path

    from federation.node import Node


def reachable(tmp_path: Path) -> Node:
    node = idle_node(tmp_path, p2p_listen="0.0.0.0:4484")
    node.connectivity.addresses = [PeerAddress("192.0.2.1", 4484, node.host.peer_id), PeerAddress("2001:db8::1", 4484)]
    return node


async def test_made_listed_and_revoked(tmp_path: Path) -> None:
    node = reachable(tmp_path)
    assert node.operator.invites() == {"invites": [], "waiting": []}
    new = await node.operator.make_invite(InviteWish(3600.0, 2, approve=True))
    TypeAdapter(schemas.NewInvite).validate_python(new, strict=True)
    code = InviteCode.decode(new["code"])
    assert [(a.host, a.port, a.peer_id) for a in code.addresses] == [("192.0.2.1", 4484, None), ("2001:db8::1", 4484, None)]
    assert (new["addresses"], new["note"]) == (["192.0.2.1:4484", "[2001:db8::1]:4484"], "")
    assert 3598 <= code.expires_at - node.newcomers.now_ms / 1000 <= 3601
    assert new["command"] == "federation join --token-file -"
    listed = node.operator.invites()
    TypeAdapter(schemas.Invites).validate_python(listed, strict=True)
    (row,) = listed["invites"]
    assert (row["id"], row["state"], row["uses"], row["approve"], row["used"]) == (code.id.hex()[:8], "open", 2, True, [])
    assert found_in(repr(listed), {"secret": code.secret, "key": code.key, "code": new["code"][7:30]}) == []
    again = idle_node(tmp_path)
    assert again.operator.invites()["invites"] == [row], "after a restart"
    assert (await again.operator.revoke_invite("all"))["invites"][0]["state"] == "revoked"
    for act in (again.operator.approve, again.operator.refuse):
        with pytest.raises(NotFound):
            await act("nobody")


async def test_what_keeps_newcomers_away_is_said(tmp_path: Path) -> None:
    local = idle_node(tmp_path / "a", p2p_listen="127.0.0.1:4484")
    local.connectivity.read()
    assert "this machine alone" in (await local.operator.make_invite(InviteWish()))["note"]
    node = reachable(tmp_path / "b")
    node.connectivity.reachability.verdicts.by_peer["somebody outside"] = False
    assert "forward its p2p port" in (await node.operator.make_invite(InviteWish()))["note"]
    add(node, "bergen", relays=True)
    assert "make the invite on bergen" in (await node.operator.make_invite(InviteWish()))["note"]


async def test_who_is_barred(tmp_path: Path) -> None:
    node = idle_node(tmp_path)
    peer = "12D3KooW" + "a" * 44
    assert node._barred(peer) is None
    node.operator.ban(peer)
    assert node._barred(peer) == "banned"
    assert node._barred(node.host.peer_id) == "copy"
