"""Inventions by multicast: a member's do not keep known members waiting, a stranger's keep nobody."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import END_S, federation, wait_until
from zeroconf import DNSOutgoing, DNSPointer

from federation.mesh.tokens import Token
from federation.net.discover.mdns import service_name

if TYPE_CHECKING:
    from fleet import Fleet

INVENTOR = Path(__file__).with_name("inventor.py")
INVENTED = 150
MULTICAST = ("224.0.0.251", 5353)
POINTERS = 600  # at names without a record: to ask for one took up to 3 s, one after the other
BACK_S = 2.0  # without inventions it takes half a second


def test_whom_a_node_knows_is_dialled_before_what_is_invented(fleet: Fleet, figure: Any) -> None:
    exit_node = fleet.daemon("exit", "--mdns", backend=fleet.backend("http", "exit"))
    entry = fleet.daemon("entry", "--mdns", peer=exit_node)
    state = ("--state-dir", str(entry.state_dir))
    wait_until(lambda: entry.offers() == {"exit"}, within=10, what="the entry sees the exit")
    exit_id = exit_node.peer_id
    command = [sys.executable, str(INVENTOR), str(fleet.token_file), str(INVENTED)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=entry.environment
    ) as inventor:
        try:
            assert inventor.stdout is not None
            federation("ban", exit_id, *state, home=entry.directory)
            assert inventor.stdout.readline() == "announced\n"
            began = time.monotonic()
            federation("unban", exit_id, *state, home=entry.directory)
            try:
                wait_until(lambda: entry.offers() == {"exit"}, within=BACK_S, what="the entry has the exit again")
            finally:
                figure(
                    f"{INVENTED} members invented by multicast, and a link is lost",
                    f"{'back' if entry.offers() else 'not back'} after {time.monotonic() - began:.1f} s",
                )
        finally:
            inventor.kill()
            inventor.wait(END_S)


def point_at_nothing(service: str, count: int) -> None:
    """As anybody on the LAN can, who reads the service's name on the wire."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sock.bind(("127.0.0.1", 0))
        for first in range(0, count, 20):
            message = DNSOutgoing(0x8400)  # an answer, with authority
            for n in range(first, first + 20):
                message.add_answer_at_time(DNSPointer(service, 12, 1, 4500, f"{n:032x}.{service}"), 0)
            for packet in message.packets():
                sock.sendto(packet, MULTICAST)


def test_a_stranger_on_the_lan_keeps_nobody(fleet: Fleet, figure: Any) -> None:
    """Neither a newcomer from being found, nor a node from ending."""
    first = fleet.daemon("first", "--mdns")
    point_at_nothing(service_name(Token.decode(fleet.token_file.read_text()).rendezvous()), POINTERS)
    fleet.daemon("newcomer", "--mdns")
    began = time.monotonic()
    wait_until(lambda: "newcomer" in first.sees(), within=20, what="a newcomer is found")
    found_s, began = time.monotonic() - began, time.monotonic()
    assert first.stop() == 0
    figure(f"{POINTERS} pointers of a stranger by multicast", f"newcomer found after {found_s:.1f} s, the node ended in "
           f"{time.monotonic() - began:.1f} s")  # fmt: skip
