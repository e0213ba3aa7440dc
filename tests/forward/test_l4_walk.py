"""Random walks: clients, peers and backends do anything they can, in any order, and after every step the books are right.

What may never happen: bytes of two backends in one answer, a backend that gets anything but the beginning of what the
client sent, a request delivered twice where that is not allowed, a counter that is not given back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from federation.forward.attempts import State
from federation.forward.counters import Flow
from federation.net.link.frames import FULL
from tests.support.entries import OWN, FakeLink, Net, Tunnel, network, record, settled
from tests.support.sockets import NO_LINGER, stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from trio.testing import MockClock

import socket as socket_module

STEPS = 60
PEERS = ("a", "b", "c")


def noise(seed: int) -> bytes:
    """What client, tunnel or server number `seed` has to say."""
    return seed.to_bytes(4, "big") + random.Random(seed).randbytes(400_000)


@dataclass
class Talker:
    """A client, or a server that our own backend accepted, non-blocking."""

    sock: socket.socket
    says: bytes
    said: int = 0
    heard: bytearray = field(default_factory=bytearray)
    eof: bool = False  # heard
    ended: bool = False  # said
    broken: bool = False
    gone: bool = False

    def say(self, n: int) -> None:
        if self.ended or self.gone:
            return
        try:
            self.said += self.sock.send(self.says[self.said : self.said + n])
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True

    def end(self) -> None:
        if not self.ended and not self.gone:
            self.ended = True
            try:
                self.sock.shutdown(socket_module.SHUT_WR)
            except OSError:
                self.broken = True

    def listen(self) -> None:
        while not (self.eof or self.gone or self.broken):
            try:
                chunk = self.sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                return
            self.heard += chunk
            self.eof = not chunk

    def reset(self) -> None:
        if not self.gone:
            self.gone = True
            self.sock.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_LINGER, NO_LINGER)
            self.sock.close()


class Walk:
    def __init__(self, net: Net, seed: int, replay: str) -> None:
        self.net = net
        self.dice = random.Random(seed)
        self.replay = replay
        self.clients: dict[str, Talker] = {}  # by the name that the entry knows them under
        self.servers: list[Talker] = []
        self.flows: dict[str, Flow] = {}
        self.answers: dict[Tunnel, bytes] = {}
        self.answered_tunnels: set[Tunnel] = set()

    # Steps

    async def step(self) -> None:
        dice, net = self.dice, self.net
        clients = [c for c in self.clients.values() if not c.gone]
        tunnels = [t for t in net.tunnels if not t.closed]
        steps = [self.connect, self.change_peers, self.tell_roster, self.let_time_pass, self.own_backend, self.tell_load]
        steps += [self.client_acts] * 3 * bool(clients)
        steps += [self.tunnel_acts] * 5 * bool(tunnels)
        steps += [self.server_acts] * 2 * bool(self.servers)
        steps += [self.suspect] * bool(tunnels)
        await dice.choice(steps)()
        await settled()
        await self.take_servers()
        for talker in (*self.clients.values(), *self.servers):
            talker.listen()
        await settled()

    async def step_without_answers(self) -> None:
        dice = self.dice
        client = dice.choice(list(self.clients.values()))
        if dice.random() < 0.5:
            client.say(dice.choice([1, 3000, 70_000]))
        elif dice.random() < 0.3:
            client.end()
        await dice.choice([self.change_peers, self.tell_roster, self.let_time_pass])()
        for tunnel in list(self.net.tunnels):
            if dice.random() < 0.3:
                tunnel.grants(dice.choice([1, 5000]))
            if dice.random() < 0.2:
                dice.choice([tunnel.refuses, tunnel.breaks, lambda tunnel=tunnel: tunnel.is_busier(3)])()
        await settled()

    async def serve(self) -> None:
        """Whoever has got a whole request answers it."""
        await self.tell_roster()
        await settled()
        for tunnel in list(self.net.tunnels):
            tunnel.answers()
            tunnel.grants(65_536)
            if tunnel.eof and not tunnel.closed:
                tunnel.sends(noise(1000 + self.net.tunnels.index(tunnel)))
                tunnel.ends()
        for client in self.clients.values():
            client.listen()

    async def connect(self) -> None:
        if len(self.clients) < 12:
            client = await self.net.connect()
            sock = client.socket._sock  # type: ignore[attr-defined]
            host, port = sock.getsockname()
            name = f"{host}:{port}"
            self.clients[name] = Talker(sock, noise(len(self.clients)))
            self.flows[name] = Flow(self.net.frontend.counters.totals.started)

    async def change_peers(self) -> None:
        net, peer = self.net, self.dice.choice(PEERS)
        if peer in net.roster.nodes and self.dice.random() < 0.5:
            del net.roster.nodes[peer]
        elif peer in net.roster.links and self.dice.random() < 0.3:
            net.roster.links[peer].is_closed ^= True
        else:
            net.roster.nodes[peer] = record(
                peer, available_vram=self.dice.randrange(3), capacity=self.dice.choice([0, 0, 2])
            )
            net.roster.links[peer] = FakeLink(peer, net.tunnels)

    async def tell_roster(self) -> None:
        self.net.roster.barred.clear()
        self.net.frontend.dispatcher.look_again()

    async def tell_load(self) -> None:
        peer, selector = self.dice.choice(PEERS), self.net.selector
        selector.told(peer, self.dice.randrange(5), is_fresh=self.dice.random() < 0.5)
        self.dice.choice([selector.full, selector.stale, selector.lost, selector.forget, lambda _peer: None])(peer)
        self.net.frontend.dispatcher.look_again()

    async def let_time_pass(self) -> None:
        await self.net.passes(self.dice.choice([0.5, 1.0, 2.0, 3.0]))

    async def own_backend(self) -> None:
        if self.dice.random() < 0.5:
            self.net.own_backend_is_up()
        else:
            self.net.backends.all[0].healthy = False

    async def client_acts(self) -> None:
        client = self.dice.choice([c for c in self.clients.values() if not c.gone])
        act = self.dice.randrange(12)
        if act < 8:
            client.say(self.dice.choice([1, 10, 3000, 70_000]))
        elif act < 10:
            client.end()
        else:
            client.reset()

    async def tunnel_acts(self) -> None:
        tunnel = self.dice.choice([t for t in self.net.tunnels if not t.closed])
        act = self.dice.randrange(12)
        if act < 4:
            if tunnel.opener is not None:
                self.answered_tunnels.add(tunnel)
            tunnel.answers()
        elif act < 5:
            tunnel.refuses()
        elif act < 6:
            tunnel.is_busier(self.dice.choice([0, 1, 2, 3, 4, FULL]))
        elif act < 9:
            n = self.dice.choice([1, 50, 2000])
            if tunnel.opener is None and not tunnel.ended:
                said = self.answers.get(tunnel, b"")
                data = noise(1000 + self.net.tunnels.index(tunnel))[len(said) : len(said) + n]
                self.answers[tunnel] = said + data
                tunnel.sends(data)
        elif act == 9:
            tunnel.ends()
        elif act == 10:
            tunnel.breaks()
        else:
            tunnel.grants(self.dice.choice([100, 65536]))

    async def server_acts(self) -> None:
        server = self.dice.choice(self.servers)
        act = self.dice.randrange(8)
        if act < 5:
            server.say(self.dice.choice([1, 50, 2000]))
        elif act < 7:
            server.end()
        else:
            server.reset()

    async def suspect(self) -> None:
        self.net.frontend.peer_suspect(self.dice.choice(PEERS))

    async def take_servers(self) -> None:
        assert self.net.backend is not None
        while True:
            try:
                sock, _ = self.net.backend.sock.accept()
            except BlockingIOError:
                return
            self.net.clients.append(stream(sock))  # closed in the end
            sock = self.net.clients[-1].socket._sock  # type: ignore[attr-defined]
            self.servers.append(Talker(sock, noise(2000 + len(self.servers))))

    # The books

    def check(self) -> None:
        frontend, selector = self.net.frontend, self.net.selector
        counted = sum(selector.own_in_flight(peer) for peer in (*PEERS, OWN))
        assert counted == sum(bool(entry.attempts.peer_id) for entry in frontend.active)
        for entry in frontend.active:
            attempts = sum(t.peer_id == entry.attempts.peer_id and not t.closed for t in self.tunnels_of(entry.client_name))
            if entry.attempts.peer_id not in ("", OWN) and entry.attempts.state is not State.STREAMING:
                assert attempts == 1
            assert (entry.attempts in frontend.dispatcher.waiting) == (entry.attempts.state is State.WAITING)
        for name, client in self.clients.items():
            self.check_client(name, client)

    def check_client(self, name: str, client: Talker) -> None:
        tunnels = list(self.tunnels_of(name))
        for tunnel in tunnels:
            assert client.says.startswith(tunnel.data[: len(client.says)])
            assert len(tunnel.data) <= client.said
            assert not tunnel.eof or (client.ended and len(tunnel.data) == client.said)
        servers = [s for s in self.servers if s.heard[:4] == client.says[:4]]
        for server in servers:
            assert client.says.startswith(server.heard)
            assert not server.eof or (client.ended and len(server.heard) == client.said)
        seen = [t for t in tunnels if t in self.answered_tunnels]
        if self.replay != "first-byte":
            assert len(seen) + len(servers) <= 1, "two backends have seen the request"
        if self.replay == "never":
            sent_back = [row for row in self.net.frontend.counters.busier if row.flow == self.flows.get(name)]
            assert len(tunnels) <= 1 + len(sent_back)
        sources = [self.answers[t] for t in tunnels if self.answers.get(t)]
        if sources:
            assert len(sources) == 1, "a second backend was asked after the first had answered"
            assert sources[0].startswith(client.heard)
        elif client.heard:
            number = int.from_bytes(client.heard[:4].ljust(4, b"\0"), "big")
            if len(client.heard) >= 4:
                assert self.servers[number - 2000].says.startswith(client.heard)

    def tunnels_of(self, name: str) -> Iterator[Tunnel]:
        return (t for t in self.net.tunnels if t.client_name == name)


@pytest.mark.parametrize("replay", ["opened", "first-byte", "never"])
@pytest.mark.parametrize("seed", range(25))
async def test_the_books_are_right_whatever_happens(mock_clock: MockClock, replay: str, seed: int) -> None:
    buffer = [1024, 65_536, 300_000][seed % 3]
    async with network(mock_clock, replay=replay, own_backend=True, replay_buffer_bytes=buffer, hold_s=3) as net:
        walk = Walk(net, seed, replay)
        for _ in range(STEPS):
            await walk.step()
            walk.check()
        for client in walk.clients.values():
            client.reset()
        await settled()
        for tunnel in list(net.tunnels):  # nobody hears a reset behind two FINs and bytes that no peer takes
            tunnel.grants(1 << 20)


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
@pytest.mark.parametrize("seed", range(100, 110))
async def test_everybody_who_is_patient_is_served_exactly(mock_clock: MockClock, replay: str, seed: int) -> None:
    """Attempts fail in any way before OPENED; in the end somebody serves, and all bytes are there in both directions."""
    async with network(mock_clock, replay=replay, replay_buffer_bytes=200_000, hold_s=1000) as net:
        walk = Walk(net, seed, replay)
        for _ in range(6):
            await walk.connect()
        for _ in range(STEPS):
            await walk.step_without_answers()
        for client in walk.clients.values():
            client.end()
        net.add(*PEERS)
        for _ in range(300):
            await walk.serve()
            if not net.frontend.active:
                break
        for name, client in walk.clients.items():
            *_, last = walk.tunnels_of(name)
            assert last.data == client.says[: client.said]
            assert bytes(client.heard) == noise(1000 + net.tunnels.index(last))
            assert client.eof
        assert net.finished("ok") == 6
        assert net.frontend.counters.totals.failed == 0
