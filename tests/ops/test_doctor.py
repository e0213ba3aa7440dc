"""Each finding over a node that does not run; its state is set by hand. See test_status.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.mesh.gpu import GpuReading
from federation.mesh.keyring import Keyring
from federation.mesh.probe import Told
from federation.mesh.records import Gpu
from federation.mesh.tokens import Token
from federation.net.admission.warnings import Refusal
from federation.net.dial.address import PeerAddress
from federation.ops import doctor
from federation.units import HostPort
from tests.support.nodes import GIB, MakeNode, add, idle_node

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.ops.schemas import Finding


@pytest.fixture
def make(tmp_path: Path) -> MakeNode:
    return partial(idle_node, tmp_path / "s")


def only(findings: Iterable[Finding]) -> tuple[str, str, str]:
    (found,) = findings
    return found["severity"], found["finding"], found["fix"]


def linked(node: Any, peer: str, *, initiator: bool) -> None:
    node.host.links[peer] = SimpleNamespace(suspect=False, is_initiator=initiator, peer_id=peer, rtt_s=None)


async def test_a_lonely_entry_is_examined_without_asking_anybody(make: MakeNode) -> None:
    node = make()
    findings = await doctor.examine(node.parts)
    checks = [found["check"] for found in findings]
    for check in (
        "token",
        "owner key",
        "p2p port",
        "reachable",
        "peers",
        "mdns",
        "backend",
        "open files",
        "versions",
        "nat",
        "handshakes",
    ):
        assert check in checks
    assert {found["severity"] for found in findings} <= {"ok", "info", "warn", "fail"}
    assert not any(found["severity"] == "fail" for found in findings)


async def test_where_the_owner_key_is(make: MakeNode) -> None:
    node = make()
    severity, finding, fix = only(doctor.owner(node.parts))
    assert (severity, "no node says" in finding, "cannot be rotated" in fix) == ("info", True, True)
    bob = add(node, "bob", owner=True)
    assert only(doctor.owner(node.parts)) == ("ok", f"not here; bob ({bob}) says to have it", "")
    node.facts.has_owner_key = True
    severity, finding, fix = only(doctor.owner(node.parts))
    path = node.state.owner_key_path(node.parts.token.network_id)
    assert (severity, finding) == ("info", f"here, in {path}")
    assert "federation owner export" in fix


async def test_a_network_without_an_owner_is_told_how_to_get_one(make: MakeNode) -> None:
    node = make()
    node.rotation.keyring = Keyring(Token(b"n" * 32))
    severity, finding, fix = only(doctor.owner(node.parts))
    assert (severity, "before there were owners" in finding, "token new" in fix) == ("info", True, True)


async def test_p2p_port(make: MakeNode) -> None:
    node = make()
    assert only(doctor.p2p_port(node.parts))[0] == "warn"  # loopback
    node.facts.p2p = HostPort("0.0.0.0", 4484)
    node.connectivity.addresses = [PeerAddress("192.168.1.5", 4484)]
    assert only(doctor.p2p_port(node.parts))[0] == "ok"


async def test_macos_keeps_programs_off_the_lan(make: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node = make()
    peer = add(node, "x", linked=False)
    for system, expected in (("Darwin", True), ("Linux", False)):
        monkeypatch.setattr(doctor.platform, "system", lambda system=system: system)
        node.host.dial_loop.not_reached[peer] = doctor.NO_ROUTE
        assert ("Local Network" in only(doctor.links(node.parts))[2]) == expected
    node.host.dial_loop.not_reached[peer] = "Connection refused"
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert "Local Network" not in only(doctor.links(node.parts))[2]


async def test_an_address_of_the_p2p_port_that_is_gone(make: MakeNode) -> None:
    node = make()
    node.facts.p2p = HostPort("192.168.1.5", 4484)
    node.connectivity.addresses = []
    severity, finding, fix = only(doctor.p2p_port(node.parts))
    assert (severity, "192.168.1.5" in finding, "0.0.0.0" in fix) == ("fail", True, True)


async def test_a_machine_that_was_copied_is_named_with_the_cure(make: MakeNode) -> None:
    node = make()
    assert only(doctor.identity(node.parts))[0] == "ok"
    node.host.copies.refuse("x", b"run", trio.current_time())
    severity, finding, fix = only(doctor.identity(node.parts))
    assert (severity, "copy of the other" in finding, "delete" in fix) == ("fail", True, True)
    node.host.copied_at = trio.current_time()
    mine, theirs = doctor.identity(node.parts)
    assert "this node's identity" in mine["finding"]
    assert str(node.state.path / "identity") in mine["fix"]
    assert theirs["finding"].startswith("x runs on two machines")


async def test_who_connected_proves_that_this_node_is_reachable(make: MakeNode) -> None:
    node = make()
    assert "not known" in only(doctor.reachable(node.parts))[1]
    linked(node, "a", initiator=True)
    severity, _, fix = only(doctor.reachable(node.parts))
    assert (severity, "4484" in fix) == ("info", True)
    linked(node, "b", initiator=False)
    assert only(doctor.reachable(node.parts))[0] == "ok"


async def test_what_members_outside_found_counts_first(make: MakeNode) -> None:
    node = make()
    linked(node, "b", initiator=False)
    verdicts = node.connectivity.reachability.verdicts.by_peer
    verdicts["b"] = True
    assert only(doctor.reachable(node.parts))[0] == "ok"
    verdicts["b"] = False
    severity, finding, fix = only(doctor.reachable(node.parts))
    assert (severity, "cannot dial" in finding, "forward TCP port" in fix) == ("warn", True, True)


async def test_peers(make: MakeNode) -> None:
    node = make()
    assert only(doctor.links(node.parts))[0] == "warn"
    add(node, "ann")
    assert only(doctor.links(node.parts))[0] == "ok"
    add(node, "sly", suspect=True)
    severity, finding, _ = only(doctor.links(node.parts))
    assert (severity, "sly" in finding, "ann" in finding) == ("warn", True, False)
    bob = add(node, "bob", linked=False)
    node.host.dial_loop.not_reached[bob] = "Connection refused"
    severity, finding, fix = only(doctor.links(node.parts))
    assert (severity, "bob (Connection refused)" in finding, "4484" in fix) == ("fail", True, True)


async def test_mdns(make: MakeNode) -> None:
    node = make(mdns=False)
    assert "off" in only(doctor.mdns(node.parts))[1]
    node = make()
    assert only(doctor.mdns(node.parts))[0] == "info"
    node.discovery.mdns_seen.add("a")
    assert only(doctor.mdns(node.parts))[:2] == ("ok", "1 peer seen on the local network")


async def test_backends(make: MakeNode) -> None:
    node = make(backends=("127.0.0.1:7", "chat=127.0.0.1:8"))
    first, second = node.backends.all
    first.healthy, second.healthy, second.why = True, False, "connection refused"
    ok, fail = doctor.backends(node.parts)
    assert (ok["severity"], fail["severity"]) == ("ok", "fail")
    assert "connection refused" in fail["finding"]
    node.operator.drain()
    assert list(doctor.backends(node.parts))[-1]["fix"] == "federation undrain"


async def test_gpu_and_clients(make: MakeNode) -> None:
    node = make(backends=("127.0.0.1:7",))
    assert only(doctor.gpu(node.parts))[0] == "info"
    node.facts.gpu = GpuReading((Gpu(name="x", total_vram=8 * GIB, available_vram=2 * GIB),), "nvml")
    assert only(doctor.gpu(node.parts))[:2] == ("ok", "2.0 of 8.0 GiB free (nvml)")
    node.facts.listeners = [("default", HostPort("127.0.0.1", 1)), ("chat", HostPort("0.0.0.0", 2))]
    severity, finding, _ = only(doctor.clients(node.parts))
    assert (severity, "chat" in finding) == ("info", True)


def test_surroundings(tmp_path: Path) -> None:
    assert doctor.container(tmp_path, "6.1.0-amd64") is None
    assert doctor.container(tmp_path, "5.15.90.1-microsoft-standard-WSL2") == "WSL"
    (tmp_path / ".dockerenv").touch()
    assert doctor.container(tmp_path, "6.1.0") == "a Docker container"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.containerenv").touch()
    assert doctor.container(tmp_path, "6.1.0") == "a Podman container"


async def test_clocks(make: MakeNode) -> None:
    node = make()
    bob = add(node, "bob")
    assert list(doctor.clocks(node.parts, {})) == []
    assert only(doctor.clocks(node.parts, {bob: Told(-0.2, 0.001, "1", None)}))[:2] == ("ok", "within 0.2 s of 1 peer")
    told = {bob: Told(-3600.0, 0.001, "1", None), "x": Told(0.0, 0.001, "1", None)}
    severity, finding, _ = only(doctor.clocks(node.parts, told))
    assert (severity, finding) == ("warn", "bob is 3600 s behind")


async def test_versions(make: MakeNode) -> None:
    node = make()
    assert only(doctor.versions(node.parts))[0] == "ok"
    add(node, "old", version="0.0.9")
    assert "old 0.0.9" in only(doctor.versions(node.parts))[1]


@pytest.mark.parametrize(
    ("seen", "severity", "words"),
    [
        ([("192.0.2.1", 4484)], "ok", "own address"),
        ([("198.51.100.7", 40001)], "info", "one public address"),
        ([("198.51.100.7", 40001), ("198.51.100.8", 40001)], "info", "2 different"),
        ([None], "info", "not known"),
        ([("127.0.0.1", 1)], "info", "not known"),
    ],
)
async def test_nat(make: MakeNode, seen: list[tuple[str, int] | None], severity: str, words: str) -> None:
    node = make()
    node.connectivity.addresses = [PeerAddress("192.0.2.1", 4484)]
    told = {}
    for number, address in enumerate(seen):
        linked(node, f"p{number}", initiator=True)
        told[f"p{number}"] = Told(0.0, 0.001, "1", address)
    found = only(doctor.nat(node.parts, told))
    assert found[0] == severity
    assert words in found[1]


async def test_the_command_that_nat_suggests_can_be_pasted(make: MakeNode) -> None:
    node = make()
    node.connectivity.addresses = [PeerAddress("192.0.2.1", 4484)]
    linked(node, "p", initiator=True)
    fix = only(doctor.nat(node.parts, {"p": Told(0.0, 0.001, "1", ("2a01:4f8::7", 40001))}))[2]
    assert fix.endswith(f"--announce [2a01:4f8::7]:{node.facts.p2p.port}")


async def test_refused_handshakes(make: MakeNode) -> None:
    node = make()
    assert only(doctor.refusals(node.parts))[0] == "ok"
    node.host.refusals.append(Refusal(trio.current_time() - 10, "192.0.2.9", "another token"))
    severity, finding, fix = only(doctor.refusals(node.parts))
    assert (severity, finding) == ("warn", "192.0.2.9: another token (10 s ago)")
    assert "invite" in fix
