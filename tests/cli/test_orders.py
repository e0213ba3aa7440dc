"""drain and undrain of another node, and notify."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from federation.mesh.owner import REMOTE_ORDER, OwnerKey, is_signed
from federation.mesh.remote import order_bytes
from tests.support.cli import Api

if TYPE_CHECKING:
    from pathlib import Path

KEY = OwnerKey(b"o" * 32)
PEER = "12D3KooWbergen"


def at_bergen(draining: bool = True, in_flight: int = 0) -> dict[str, Any]:
    return {"peer_id": PEER, "name": "bergen\x1b", "draining": draining, "in_flight": in_flight, "clients": 0}


def prepared(order: str = "drain", peer: str = PEER, owner: OwnerKey = KEY) -> dict[str, Any]:
    said = order_bytes(b"n" * 40, b"r" * 32, peer, order)
    return {"network": "n", "owner": owner.public.hex(), "peer_id": peer, "name": "bergen", "order": said.hex()}


def test_by_the_node_s_own_key(api: Api, run: Any) -> None:
    api.answers["POST orders"] = [at_bergen(in_flight=2)]
    code, out, _ = run("drain", "--node", "bergen")
    assert (code, out) == (0, "draining, nothing new is sent to bergen?; 2 connections are served here\n")
    assert api.seen[-1] == ("POST orders", {"peer": "bergen", "order": "drain"})
    api.answers["POST orders"] = [at_bergen(draining=False)]
    assert run("undrain", "--node", "bergen")[:2] == (0, "bergen? takes connections again\n")
    assert run("undrain", "--node", "bergen", "--json")[1] == json.dumps(at_bergen(draining=False)) + "\n"


def test_waiting_looks_and_orders_once(api: Api, run: Any) -> None:
    api.answers["POST orders"] = [at_bergen(in_flight=1), at_bergen(in_flight=1), at_bergen()]
    code, out, _ = run("drain", "--node", "bergen", "--wait")
    assert (code, out) == (0, "drained: nothing is open at bergen?; it is safe to reboot\n")
    orders = [body["order"] for asked, body in api.seen if asked == "POST orders"]
    assert orders[0] == "drain"
    assert set(orders[1:]) == {"look"}


def test_a_key_from_elsewhere_signs_here_and_does_not_travel(api: Api, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "owner.key"
    file.write_text(KEY.encode())
    file.chmod(0o600)
    api.answers["POST orders/prepare"] = [prepared()]
    api.answers["POST orders/signed"] = [at_bergen()]
    assert run("drain", "--node", "bergen", "--owner-key", str(file))[0] == 0
    (signed,) = [body for asked, body in api.seen if asked == "POST orders/signed"]
    assert is_signed(KEY.public, bytes.fromhex(prepared()["order"]), bytes.fromhex(signed["signature"]), REMOTE_ORDER)
    assert KEY.encode() not in json.dumps(api.seen)
    assert KEY.seed.hex() not in json.dumps(api.seen)


def test_what_was_not_asked_for_is_not_signed(api: Api, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "owner.key"
    file.write_text(KEY.encode())
    file.chmod(0o600)
    for answer in (prepared("undrain"), prepared(peer="12D3KooWcusco") | {"peer_id": PEER}):
        api.answers["POST orders/prepare"] = [answer]
        code, _, err = run("drain", "--node", "bergen", "--owner-key", str(file))
        assert (code, err.startswith("federation: the node asks to sign another order")) == (2, True)
    api.answers["POST orders/prepare"] = [prepared(owner=OwnerKey(b"x" * 32))]
    code, _, err = run("drain", "--node", "bergen", "--owner-key", str(file))
    assert code == 2
    assert "this is not the owner key of network n" in err
    assert "POST orders/signed" not in api.asked


def test_wrong_options(api: Api, run: Any, tmp_path: Path) -> None:
    assert run("drain", "--node", "")[0] == 2
    assert run("drain", "--owner-key", str(tmp_path / "none"))[2].endswith("say which one with --node PEER\n")
    assert run("undrain", "--node", "b", "--owner-key", str(tmp_path / "none"))[0] == 2
    assert api.seen == []


def test_a_test_message(api: Api, run: Any) -> None:
    api.answers["POST notices/test"] = [{"to": "https://ntfy.sh/…", "told": 0}]
    assert run("notify") == (0, "https://ntfy.sh/… took the test message\n", "")
