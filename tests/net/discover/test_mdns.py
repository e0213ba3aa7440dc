from __future__ import annotations

import secrets
import socket
import sys
import threading
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st

from federation.net.dial.address import PeerAddress
from federation.net.dial.book import MAX_ADDRESSES
from federation.net.discover import mdns
from federation.net.discover.mdns import Mdns, decode_txt, encode_txt, instance_name, service_name

ALICE, BOB, CAROL = (f"12D3KooW{letter * 44}" for letter in "ABC")
DEADLINE_S = 15.0


class TestTxt:
    ADDRESSES = (PeerAddress("192.168.1.5", 4484), PeerAddress("fd00::5", 4484), PeerAddress("box.example", 443))

    def test_round_trip_in_order_with_the_peer_id(self) -> None:
        txt = encode_txt("rendezvous", ALICE, self.ADDRESSES, nonce="1")
        assert decode_txt("rendezvous", txt) == [PeerAddress(a.host, a.port, ALICE) for a in self.ADDRESSES]

    def test_fits_a_packet_and_its_strings_fit_theirs(self) -> None:
        many = [PeerAddress(f"2001:db8:1111:2222:3333:4444:5555:{n:x}", 65535) for n in range(0x1000, 0x1040)]
        txt = encode_txt("rendezvous", ALICE, [*many[:3], PeerAddress("a." * 126 + "b", 1), *many[3:]], nonce="f" * 16)
        assert all(len(key) + 1 + len(value) <= 255 for key, value in txt.items())
        assert sum(len(key) + 2 + len(value) for key, value in txt.items()) < 1200
        assert len(decode_txt("rendezvous", txt)) == MAX_ADDRESSES - 1  # all that were let in but the oversized name

    def test_of_another_network_or_changed_on_the_way_says_nothing(self) -> None:
        txt = encode_txt("rendezvous", ALICE, self.ADDRESSES, nonce="1")
        assert decode_txt("other", txt) == []
        for key in txt:
            assert decode_txt("rendezvous", {k: v for k, v in txt.items() if k != key}) == []
            assert decode_txt("rendezvous", {**txt, key: b"/ip4/203.0.113.66/tcp/22"}) == []
        assert decode_txt("rendezvous", {**txt, b"a3": b"/ip4/203.0.113.66/tcp/22"}) == []
        moved = {**txt, b"n": b"1" + txt[b"a0"], b"a0": txt[b"a1"], b"a1": txt[b"a2"]}
        assert decode_txt("rendezvous", {key: value for key, value in moved.items() if key != b"a2"}) == []
        assert decode_txt("rendezvous", {**txt, b"unknown": b"future"}) != []

    @given(
        st.dictionaries(
            st.one_of(st.binary(max_size=9), st.sampled_from([b"id", b"n", b"m", b"a0", b"a15"])),
            st.one_of(st.none(), st.binary(max_size=60)),
        )
    )
    def test_any_bytes_say_nothing(self, txt: dict[bytes, bytes | None]) -> None:
        assert decode_txt("rendezvous", txt) == []

    def test_names_tell_an_outsider_nothing_and_keep_to_dns_limits(self) -> None:
        service, instance = service_name("rendezvous"), instance_name("rendezvous", ALICE)
        assert service.endswith("._tcp.local.")
        assert len(service.split(".")[0]) <= 16  # an underscore and 15 characters
        assert instance.endswith("." + service)
        assert len(instance.split(".")[0]) <= 63
        assert "rendezvous" not in instance
        assert ALICE not in instance
        assert len({service, service_name("other"), instance, instance_name("rendezvous", BOB)}) == 4


class Neighbour:
    """An Mdns on loopback that notes whom it found."""

    def __init__(self, rendezvous: str, peer_id: str, *ports: int) -> None:
        self.addresses = [PeerAddress("127.0.0.1", port) for port in ports]
        self.found: list[PeerAddress] = []
        self.sends, self.receives = trio.open_memory_channel[PeerAddress](100)
        self.mdns = Mdns(
            rendezvous=rendezvous,
            peer_id=peer_id,
            addresses=lambda: self.addresses,
            on_found=self.on_found,
            interfaces=["127.0.0.1"],  # nothing leaves this machine
        )

    def on_found(self, address: PeerAddress) -> None:
        trio.lowlevel.current_task()  # raises on any thread but trio's
        self.found.append(address)
        self.sends.send_nowait(address)

    async def finds(self, *addresses: PeerAddress) -> None:
        missing = set(addresses)
        with trio.fail_after(DEADLINE_S):
            while missing:
                missing.discard(await self.receives.receive())


@pytest.fixture
def network() -> str:
    """A rendezvous of its own for each test: others may run on this machine at the same time."""
    return secrets.token_hex(8)


class TestMdns:
    async def test_finds_its_own_network_and_no_other(self, network: str, nursery: trio.Nursery) -> None:
        other = network + "x"
        alice, bob = Neighbour(network, ALICE, 1001, 1002), Neighbour(network, BOB, 2001)
        carol, dave = Neighbour(other, CAROL, 3001), Neighbour(other, ALICE, 4001)
        for neighbour in (alice, bob, carol, dave):
            await nursery.start(neighbour.mdns.run)
        await alice.finds(PeerAddress("127.0.0.1", 2001, BOB))
        await bob.finds(PeerAddress("127.0.0.1", 1001, ALICE), PeerAddress("127.0.0.1", 1002, ALICE))
        await carol.finds(PeerAddress("127.0.0.1", 4001, ALICE))
        await dave.finds(PeerAddress("127.0.0.1", 3001, CAROL))
        assert {a.port for a in alice.found} == {2001}
        assert {a.port for a in bob.found} == {1001, 1002}
        assert {a.port for a in carol.found} == {4001}
        assert {a.port for a in dave.found} == {3001}

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a socket hears only what it joined")
    async def test_hears_the_interfaces_it_was_given_and_no_other(
        self, network: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []

        def zeroconf(**options: Any) -> Any:
            made.append(real(**options))
            return made[0]

        real = mdns.Zeroconf
        monkeypatch.setattr(mdns, "Zeroconf", zeroconf)
        await nursery.start(Neighbour(network, ALICE, 1001).mdns.run)
        sockets = [reader.transport.get_extra_info("socket") for reader in made[0].engine.readers]
        assert sockets
        assert {sock.getsockopt(socket.IPPROTO_IP, 49) for sock in sockets} == {0}  # IP_MULTICAST_ALL

    async def test_announces_a_change_of_address(
        self, network: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mdns, "CHECK_S", 0.02)
        alice, bob = Neighbour(network, ALICE, 1001), Neighbour(network, BOB)
        await nursery.start(alice.mdns.run)
        await nursery.start(bob.mdns.run)
        await bob.finds(PeerAddress("127.0.0.1", 1001, ALICE))
        assert alice.found == []  # who has no address announces none
        alice.addresses = [PeerAddress("127.0.0.1", 1002)]
        await bob.finds(PeerAddress("127.0.0.1", 1002, ALICE))

    @pytest.mark.parametrize("says_goodbye", [True, False])
    async def test_a_restart_at_the_same_address_is_news(
        self, network: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, says_goodbye: bool
    ) -> None:
        if not says_goodbye:  # it was killed
            monkeypatch.setattr(mdns.Zeroconf, "unregister_all_services", lambda self: None)
        bob = Neighbour(network, BOB, 2001)
        await nursery.start(bob.mdns.run)
        for _ in range(2):
            async with trio.open_nursery() as life:
                await life.start(Neighbour(network, ALICE, 1001).mdns.run)
                await bob.finds(PeerAddress("127.0.0.1", 1001, ALICE))
                life.cancel_scope.cancel()

    async def test_leaves_no_thread_behind(self, network: str) -> None:
        before = set(threading.enumerate())
        async with trio.open_nursery() as nursery:
            await nursery.start(Neighbour(network, ALICE, 1001).mdns.run)
            await nursery.start(Neighbour(network, BOB, 2001).mdns.run)
            nursery.cancel_scope.cancel()
        left = {thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("Trio")}
        assert left == set()

    async def test_without_multicast_warns_once_and_goes_on_when_there_is(
        self, network: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attempts = 0
        works = trio.Event()

        def zeroconf(**options: Any) -> Any:
            nonlocal attempts
            attempts += 1
            if attempts < 4:
                raise OSError("no such device")
            trio.from_thread.run_sync(works.set)
            return real(**options)

        real = mdns.Zeroconf
        monkeypatch.setattr(mdns, "Zeroconf", zeroconf)
        monkeypatch.setattr(mdns, "CHECK_S", 0.01)
        monkeypatch.setattr(mdns, "RETRY_S", 0.05)
        alice, bob = Neighbour(network, ALICE, 1001), Neighbour(network, BOB, 2001)
        with structlog.testing.capture_logs() as logs, trio.fail_after(DEADLINE_S):
            await nursery.start(alice.mdns.run)  # is up all the same
            await works.wait()
        assert [(line["log_level"], line["reason"]) for line in logs] == [("warning", "no such device")]
        await nursery.start(bob.mdns.run)
        await alice.finds(PeerAddress("127.0.0.1", 2001, BOB))

    async def test_no_interface_that_takes_it_is_no_multicast_either(
        self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mdns, "multicast_interfaces", lambda addresses: [])
        alone = Mdns(rendezvous="r", peer_id=ALICE, addresses=list, on_found=lambda address: None)
        with structlog.testing.capture_logs() as logs:
            await nursery.start(alone.run)
        assert [line["log_level"] for line in logs] == ["warning"]

    async def test_never_blocks_the_loop(self, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
        opened, closed = trio.Event(), trio.Event()

        class Watched(mdns.Zeroconf):
            def __init__(self, **options: Any) -> None:
                trio.from_thread.run_sync(opened.set)  # fails on trio's own thread: it would wait for itself
                super().__init__(**options)

            def close(self) -> None:
                trio.from_thread.run_sync(closed.set)
                super().close()

        monkeypatch.setattr(mdns, "Zeroconf", Watched)
        async with trio.open_nursery() as nursery:
            await nursery.start(Neighbour(network, ALICE, 1001).mdns.run)
            assert opened.is_set()
            nursery.cancel_scope.cancel()
        assert closed.is_set()

    async def test_a_goodbye_is_not_a_sighting(self, network: str, nursery: trio.Nursery) -> None:
        bob = Neighbour(network, BOB, 2001)
        await nursery.start(bob.mdns.run)
        async with trio.open_nursery() as life:
            await life.start(Neighbour(network, ALICE, 1001).mdns.run)
            await bob.finds(PeerAddress("127.0.0.1", 1001, ALICE))
            bob.found.clear()
            life.cancel_scope.cancel()
        carol = Neighbour(network, CAROL, 3001)  # whose arrival shows that bob has read the goodbye before it
        await nursery.start(carol.mdns.run)
        await bob.finds(PeerAddress("127.0.0.1", 3001, CAROL))
        assert {address.peer_id for address in bob.found} == {CAROL}
