"""Random walks of HTTP clients: they ask, wait, stop, go; peers do anything they can. After every step the books are right.

What may never happen: a byte in an answer that its backend did not say for it, answers out of order, a backend that gets
anything but the beginning of one request, a request that two backends have answered, a counter that is not given back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from federation.forward.attempts import State
from federation.forward.counters import Flow
from tests.support.entries import FakeLink, Net, Tunnel, network, record, settled
from tests.support.http_clients import body_of, get, ok, ok_chunked, post, post_chunked
from tests.support.sockets import reset

if TYPE_CHECKING:
    import trio
    from trio.testing import MockClock

STEPS = 80
PEERS = ("a", "b", "c")


@dataclass
class Asker:
    """A client, whose requests carry their number on the connection as their target."""

    number: int
    stream: trio.SocketStream
    says: bytes = b""
    asked: list[bytes] = field(default_factory=list)
    said: int = 0
    heard: bytes = b""
    is_over: bool = False

    def ask(self, request: bytes) -> None:
        self.asked.append(request)
        self.says += request

    def say(self, n: int) -> None:
        try:
            self.said += self.stream.socket._sock.send(self.says[self.said : self.said + n])  # type: ignore[attr-defined]
        except BlockingIOError:
            pass
        except OSError:
            self.is_over = True

    def listen(self) -> None:
        while not self.is_over:
            try:
                data = self.stream.socket._sock.recv(65536)  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError:
                self.is_over = True
            else:
                self.heard += data
                self.is_over = not data

    def leave(self) -> None:
        self.is_over = True
        reset(self.stream)


class Walk:
    def __init__(self, net: Net, seed: int, replay: str) -> None:
        self.net = net
        self.dice = random.Random(seed)
        self.replay = replay
        self.askers: dict[int, Asker] = {}  # by the number of their connection
        self.answers: dict[Tunnel, bytes] = {}
        self.said: dict[Tunnel, int] = {}
        self.opened: set[Tunnel] = set()

    async def step(self) -> None:
        steps = [self.connect, self.change_peers, self.forgive, self.let_time_pass, self.suspect]
        steps += [self.asker_acts] * 5 * bool(self.here()) + [self.tunnel_acts] * 8 * bool(self.tunnels())
        await self.dice.choice(steps)()
        await settled()
        for asker in self.here():
            asker.listen()
        await settled()

    def here(self) -> list[Asker]:
        return [asker for asker in self.askers.values() if not asker.is_over]

    def tunnels(self) -> list[Tunnel]:
        return [tunnel for tunnel in self.net.tunnels if not tunnel.closed]

    async def connect(self) -> None:
        if len(self.askers) < 8:
            number = len(self.askers) + 1
            self.askers[number] = Asker(number, await self.net.connect())

    async def change_peers(self) -> None:
        net, peer = self.net, self.dice.choice(PEERS)
        if peer in net.roster.nodes and self.dice.random() < 0.3:
            del net.roster.nodes[peer]
        else:
            net.roster.nodes[peer] = record(peer, capacity=self.dice.choice([0, 0, 2]))
            net.roster.links[peer] = FakeLink(peer, net.tunnels)

    async def forgive(self) -> None:
        self.net.forgive()

    async def let_time_pass(self) -> None:
        await self.net.passes(self.dice.choice([0.5, 1.0, 2.5]))

    async def suspect(self) -> None:
        self.net.frontend.peer_suspect(self.dice.choice(PEERS))

    async def asker_acts(self) -> None:
        dice, asker = self.dice, self.dice.choice(self.here())
        act = dice.randrange(10)
        if act < 5 and asker.said == len(asker.says):
            for _ in range(dice.choice([1, 1, 3])):
                target = f"/{asker.number}/{len(asker.asked) + 1}"
                body = b"<" + dice.randbytes(dice.choice([1, 50, 70_000]))
                asker.ask(dice.choice([get(target), post(body, target), post_chunked(body, target, size=9000)]))
        if act < 9:
            asker.say(dice.choice([1, 100, 100_000, 100_000]))
        else:
            asker.leave()

    async def tunnel_acts(self) -> None:
        dice, tunnel = self.dice, self.dice.choice(self.tunnels())
        act = dice.randrange(16)
        if act < 5:
            self.opened.add(tunnel)
            tunnel.answers()
        elif act < 10 and tunnel in self.opened:
            if tunnel not in self.answers:
                body = b"%d/%d " % tunnel.flow + dice.randbytes(dice.choice([0, 20, 50_000]))
                self.answers[tunnel] = dice.choice([ok(body), ok_chunked(body, size=7000)])
            said = self.said.get(tunnel, 0)
            data = self.answers[tunnel][said : said + dice.choice([1, 30, 60_000, 60_000])]
            self.said[tunnel] = said + len(data)
            tunnel.sends(data)
        elif act == 10:
            tunnel.refuses()
        elif act == 11:
            tunnel.is_busier(dice.randrange(4))
        elif act == 12:
            tunnel.ends()
        elif act == 13:
            tunnel.breaks()
        else:
            tunnel.grants(dice.choice([100, 65_536]))

    # The books

    def check(self) -> None:
        frontend, selector = self.net.frontend, self.net.selector
        counted = sum(selector.own_in_flight(peer) for peer in PEERS)
        assert counted == sum(bool(client.peer_id) for client in frontend.active)
        asked = [client for client in frontend.active if client.state is State.WAITING]
        waiting = [client for client in asked if not client.exchange._body.is_sought]
        assert len(waiting) == len(frontend.dispatcher.waiting)
        totals = frontend.counters.totals
        under_way = sum(client.exchange is not None for client in frontend.active)
        assert totals.started == self.net.metric("federation_connections_finished_total") + under_way
        for asker in self.askers.values():
            self.check_asker(asker)

    def check_asker(self, asker: Asker) -> None:
        rest = asker.heard
        for n, request in enumerate(asker.asked, 1):
            tunnels = [tunnel for tunnel in self.net.tunnels if tunnel.flow == Flow(asker.number, n)]
            for tunnel in tunnels:
                assert b" /%d/%d HTTP/1.1\r\n" % (asker.number, n) in tunnel.data[:40]
                assert body_of(request).startswith(body_of(tunnel.data))
            seen = [tunnel for tunnel in tunnels if tunnel in self.opened]
            if self.replay != "first-byte":
                assert len(seen) <= 1, "two backends have seen the request"
            said = {tunnel: self.answers.get(tunnel, b"")[: self.said.get(tunnel, 0)] for tunnel in tunnels}
            answered = [tunnel for tunnel in tunnels if b"\r\n\r\n" in said[tunnel]]
            assert len(answered) <= 1, "a second backend was asked after the first had answered"
            head, mark, behind = rest.partition(b"\r\n\r\n")
            if not mark:
                assert not rest or b"HTTP/1.1".startswith(rest[:8])
                return
            if b"X-Federation-Node" not in head:  # this entry's own: the last one
                assert head.split(b" ")[1] in (b"502", b"503")
                assert b"Connection: close" in head
                return
            body = body_of(self.answers[answered[0]])
            assert behind.startswith(body[: len(behind)])
            rest = behind[len(body) :]
        assert not rest


@pytest.mark.parametrize("replay", ["opened", "first-byte", "never"])
@pytest.mark.parametrize("seed", range(20))
async def test_the_books_are_right_whatever_happens(mock_clock: MockClock, replay: str, seed: int) -> None:
    buffer = [1024, 65_536, 300_000][seed % 3]
    async with network(mock_clock, http=True, replay=replay, replay_buffer_bytes=buffer, hold_s=3) as net:
        net.add("a", "b")
        walk = Walk(net, seed, replay)
        for _ in range(STEPS):
            await walk.step()
            walk.check()
        for asker in walk.askers.values():  # those that have heard an EOF, too
            if asker.stream.socket.fileno() >= 0:
                asker.leave()
        await settled(lambda: not net.frontend.active)
        await net.passes(5)  # backends that do not close behind their answers


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
@pytest.mark.parametrize("seed", range(100, 110))
async def test_who_is_patient_is_answered_exactly(mock_clock: MockClock, replay: str, seed: int) -> None:
    """Attempts fail in any way before OPENED; in the end somebody serves, and every request has its answer, in order."""
    dice = random.Random(seed)
    async with network(mock_clock, http=True, replay=replay, replay_buffer_bytes=300_000, hold_s=1000) as net:
        walk = Walk(net, seed, replay)
        for _ in range(4):
            await walk.connect()
        for asker in walk.here():
            for n in range(1, 6):
                body = b"<" + dice.randbytes(dice.choice([1, 3000, 60_000]))
                asker.ask(dice.choice([post(body, f"/{asker.number}/{n}"), post_chunked(body, f"/{asker.number}/{n}")]))
        for n in range(3000):
            for asker in walk.here():
                asker.say(dice.choice([1, 1000, 100_000]))
                asker.listen()
            if n % 3 == 0:
                net.add(*PEERS)
                net.forgive()
            await settled()
            for tunnel in walk.tunnels():
                act = dice.randrange(8)
                if act < 2 and tunnel not in walk.opened:
                    dice.choice([tunnel.refuses, tunnel.breaks, lambda tunnel=tunnel: tunnel.is_busier(3)])()
                elif act < 6:
                    walk.opened.add(tunnel)
                    tunnel.answers()
                    tunnel.grants(70_000)
                    asker = walk.askers[tunnel.flow.connection]
                    if len(body_of(tunnel.data)) == len(body_of(asker.asked[tunnel.flow.request - 1])) and not tunnel.eof:
                        answer = walk.answers[tunnel] = ok(b"%d/%d" % tunnel.flow)
                        walk.said[tunnel] = len(answer)
                        tunnel.sends(answer)
                elif tunnel.eof:
                    tunnel.ends()
            walk.check()
            if net.finished("ok") == 20:
                break
        await settled()
        for asker in walk.here():
            asker.listen()
            walk.check_asker(asker)
            assert asker.heard.count(b"HTTP/1.1 200 OK") == 5
        assert net.finished("ok") == 20
        assert net.frontend.counters.totals.failed == 0
