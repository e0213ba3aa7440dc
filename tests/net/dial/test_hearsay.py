"""What others say of where peers are: the places where that makes sense, and the pace at which they are dialled."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from federation.net.dial.address import PeerAddress
from federation.net.dial.hearsay import (
    DIALS_A_SECOND,
    DIALS_AT_ONCE,
    HOST_A_SECOND,
    HOST_AT_ONCE,
    Pace,
    Surroundings,
    is_somewhere,
    private_block,
)
from federation.units import HostPort


class Machine:
    """Where a node runs. `interfaces` in CIDR; `bridges`, those of them that lead to its own containers."""

    def __init__(
        self, *interfaces: str, announces: tuple[str, ...] = ("203.0.113.1",), bridges: tuple[str, ...] = ()
    ) -> None:
        self.announces = announces
        self.links: list[str] = []
        self.ports = [HostPort("0.0.0.0", 4484), HostPort("127.0.0.1", 8484)]
        self.surroundings = Surroundings(
            addresses=lambda: [PeerAddress(host, 4484) for host in self.announces],
            own_ports=lambda: self.ports,
            remote_hosts=lambda: self.links,
        )
        self.has(*interfaces, bridges=bridges)

    def has(self, *interfaces: str, bridges: tuple[str, ...] = ()) -> None:
        lasting = [ip_network(text, strict=False) for text in ("127.0.0.1/8", *interfaces)]
        own_ips = {text.partition("/")[0] for text in ("127.0.0.1", *interfaces, *bridges)}
        networks = [*lasting, *(ip_network(text, strict=False) for text in bridges)]
        self.surroundings.see(networks, lasting=lasting, own_ips=own_ips)

    def dials(self, host: str, port: int = 4484, *, trusted: bool = False) -> bool:
        return self.surroundings.may_dial(PeerAddress(host, port), trusted)


@pytest.mark.parametrize(
    "host",
    [
        *("0.1.2.3", "127.0.0.1", "127.9.9.9", "169.254.169.254", "192.0.0.8", "192.0.2.1", "198.51.100.1", "203.0.113.9"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1"),
        *("::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::1", "2001:0:1::1"),
    ],
)
def test_nowhere(host: str) -> None:
    """However it is spelt: in IPv6 an IPv4 address may be inside."""
    assert not is_somewhere(ip_address(host))
    assert not Machine("192.168.1.5/24").dials(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "198.18.0.1", "2a01:4f8::1"])
def test_the_internet_is_dialled_from_anywhere(host: str) -> None:
    assert private_block(ip_address(host)) is None
    assert Machine("11.22.33.44/24").dials(host)


def test_a_private_network_where_this_machine_is_in_none_is_not() -> None:
    machine = Machine("11.22.33.44/24")
    for host in ("10.9.9.9", "172.17.0.1", "192.168.7.7", "100.64.0.1", "fd00::7"):
        assert not machine.dials(host)
        assert not machine.dials(host, trusted=True)  # it was right where this machine was then


@pytest.mark.parametrize(
    ("interface", "there", "elsewhere"),
    [
        ("10.1.0.5/16", "10.2.0.7", "192.168.1.1"),
        ("172.16.3.4/24", "172.31.0.1", "10.2.0.7"),
        ("192.168.1.5/24", "192.168.77.1", "10.2.0.7"),
        ("100.64.0.3/32", "100.127.0.9", "10.2.0.7"),
        ("fd12::5/64", "fd34::1", "10.2.0.7"),
    ],
)
def test_routed_sites_and_vpns_of_one_block_are(interface: str, there: str, elsewhere: str) -> None:
    assert Machine(interface).dials(there)
    assert not Machine(interface).dials(elsewhere)


def test_a_bridge_to_own_containers_is_dialled_and_its_block_is_not() -> None:
    machine = Machine("11.22.33.44/24", bridges=("172.17.0.1/16",))
    assert machine.dials("172.17.0.5")
    assert not machine.dials("172.18.0.5")


def test_a_member_that_is_linked_from_a_private_network_shows_that_packets_find_there() -> None:
    """Sites whose blocks differ, with routes between them."""
    machine = Machine("10.1.0.5/16")
    assert not machine.dials("192.168.3.3")
    machine.links = ["192.168.3.9", "8.8.8.8"]
    assert machine.surroundings.linked("192.168.3.9")
    assert not machine.surroundings.linked("192.168.3.9")  # nothing new
    assert not machine.surroundings.linked("8.8.8.8")
    assert machine.dials("192.168.3.3")
    machine.has("172.20.0.5/24")  # it moved, and the link is there still
    assert machine.dials("192.168.3.3")
    assert not machine.dials("10.2.0.7")
    machine.links = []
    machine.has("172.20.0.6/24")
    assert not machine.dials("192.168.3.3")


def test_a_name_leads_where_its_owner_says() -> None:
    assert not Machine().dials("box.example")
    assert not Machine().dials("localhost")
    assert Machine().dials("box.example", trusted=True)


class TestLoopback:
    def test_of_another_machine_is_not_dialled(self) -> None:
        assert not Machine("192.168.1.5/24", announces=("192.168.1.5",)).dials("127.0.0.1", 22)

    def test_among_daemons_of_this_machine_it_is(self) -> None:
        machine = Machine("192.168.1.5/24", announces=("127.0.0.1",))
        machine.links = ["127.0.0.1", "::1", "192.168.1.5"]
        assert machine.dials("127.0.0.1", 4485)

    def test_unless_one_of_them_is_linked_elsewhere(self) -> None:
        """Who listens here alone may dial out, and what it hears then comes from anywhere."""
        machine = Machine("192.168.1.5/24", announces=("127.0.0.1",))
        machine.links = ["127.0.0.1", "192.168.1.6"]
        assert not machine.dials("127.0.0.1", 4485)
        assert machine.dials("127.0.0.1", 4485, trusted=True)

    def test_or_announces_more(self) -> None:
        machine = Machine(announces=("127.0.0.1", "8.8.8.8"))
        assert not machine.dials("127.0.0.1", 4485)


@pytest.mark.parametrize(
    ("host", "port", "dialled"),
    [("127.0.0.1", 4484, False), ("127.0.0.1", 8484, False), ("192.168.1.5", 4484, False), ("172.17.0.1", 4484, False),
     ("127.0.0.1", 4485, True), ("192.168.1.5", 4485, True), ("192.168.1.6", 4484, True)],
)  # fmt: skip
def test_own_ports_are_never_dialled(host: str, port: int, dialled: bool) -> None:
    machine = Machine("192.168.1.5/24", announces=("127.0.0.1",), bridges=("172.17.0.1/16",))
    assert machine.dials(host, port, trusted=True) is dialled


class TestPace:
    def test_of_one_host_whoever_is_said_to_be_there(self) -> None:
        pace = Pace()
        assert sum(pace.take("8.8.8.8", 0.0) for _ in range(100)) == HOST_AT_ONCE
        assert pace.take("9.9.9.9", 0.0)
        assert sum(pace.take("8.8.8.8", n / 10) for n in range(101)) == pytest.approx(10 * HOST_A_SECOND, abs=1)

    def test_one_ipv6_network_is_one_host(self) -> None:
        pace = Pace()
        assert sum(pace.take(f"2a01:4f8::{n:x}", 0.0) for n in range(100)) == HOST_AT_ONCE
        assert pace.take("2a01:4f8:0:1::1", 0.0)

    def test_over_all(self) -> None:
        pace = Pace()
        hosts = [f"8.8.{n // 250}.{n % 250 + 1}" for n in range(1000)]
        assert sum(pace.take(host, 0.0) for host in hosts) == DIALS_AT_ONCE
        assert sum(pace.take(host, 5.0) for host in hosts) == 5 * DIALS_A_SECOND

    def test_what_finds_a_member_does_not_count(self) -> None:
        """Three hundred behind one address are reached one after the other, without a pause."""
        pace = Pace()
        for _ in range(300):
            assert pace.take("8.8.8.8", 0.0)
            pace.found("8.8.8.8", 0.0)
        assert sum(pace.take("8.8.8.8", 0.0) for _ in range(100)) == HOST_AT_ONCE

    def test_a_name_has_none(self) -> None:
        pace = Pace()
        pace.found("box.example", 0.0)
        assert all(pace.take("box.example", 0.0) for _ in range(1000))
