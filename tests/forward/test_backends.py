"""Local servers: whether they answer, and which one gets the next connection."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from structlog.testing import capture_logs

from federation.errors import BackendUnavailable
from federation.forward import backends as module
from federation.forward.backends import FIRST_HOLD_S, NEAR_S, NEWEST_WEIGHT, Backend
from federation.reactor.sockets import SocketDuplex
from tests.support.exits import believe, checking, make_exit, serve
from tests.support.links import End, until
from tests.support.sockets import Listener, quiet, reset, running

if TYPE_CHECKING:
    pass

# Health


async def test_a_backend_that_answers_is_offered_from_the_first_check_on() -> None:
    with Listener() as listener:
        exit_ = make_exit(listener.address)
        assert exit_.backends.services() == {"default": False}
        with pytest.raises(BackendUnavailable, match="not checked yet"):
            serve(exit_.backends, "default", lambda end, why: None)
        async with checking(exit_):
            assert exit_.backends.services() == {"default": True}
            assert exit_.changes == [{"default": True}]  # told once
            assert exit_.backend.target == (socket.AF_INET, (listener.host, listener.port))


async def test_a_backend_that_is_down_is_not_offered_and_says_why() -> None:
    with Listener(listening=False) as listener:
        exit_ = make_exit(listener.address)
        with capture_logs() as logs:
            async with checking(exit_):
                assert exit_.backends.services() == {"default": False}
        assert exit_.backend.why == "Connection refused"
        assert [(log["log_level"], log["why"]) for log in logs] == [("warning", "Connection refused")]
        assert exit_.changes == [{"default": False}]
        with pytest.raises(BackendUnavailable, match="Connection refused"):
            serve(exit_.backends, "default", lambda end, why: None)


async def test_health_follows_the_backend_down_and_up() -> None:
    with Listener(listening=False) as listener:
        exit_ = make_exit(listener.address, health_interval_s=0.1)
        async with checking(exit_):
            listener.listen()
            await until(lambda: exit_.changes[-1] == {"default": True})
            port = listener.port
            listener.close()
            await until(lambda: exit_.changes[-1] == {"default": False})
            again = socket.create_server(("127.0.0.1", port))
            await until(lambda: exit_.changes[-1] == {"default": True})
            await exit_.backends._check(exit_.backend)
            again.close()
        assert len(exit_.changes) == 4  # only changes are told, not checks


async def test_a_name_that_is_none_is_a_backend_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", no_such_name)
    exit_ = make_exit("no-such-host.example:80")
    async with checking(exit_):
        assert exit_.backend.why == "Name or service not known"


async def test_a_backend_that_does_not_answer_is_down_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEALTH_TIMEOUT_S", 0.05)
    with Listener(backlog=0) as listener:
        listener.clog()
        exit_ = make_exit(listener.address)
        with trio.fail_after(20):
            async with checking(exit_):
                assert exit_.backend.why == "no answer within 0.05 s"


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.0 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", True),
        (b"HTTP/1.1 200\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False),
        (b"HTTP/1.1\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False),
        (b"\xff\xfe no text at all \x00\r\n", False),
        (b"HTTP/1.1 200 OK", True),  # its status is said, though not ended
        (b"x" * 1000, False),
        (b"", False),
    ],
)
async def test_a_health_path_must_answer_well(answer: bytes, healthy: bool) -> None:
    with Listener() as listener:
        exit_ = make_exit(listener.address, health_path="/health?x=1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exit_.backends.run)
            async with await listener.accept() as asked:
                request = await asked.receive_some()
                assert request.startswith(b"GET /health?x=1 HTTP/1.1\r\nHost: " + listener.address.encode() + b"\r\n")
                assert request.endswith(b"\r\n\r\n")
                with suppress(trio.BrokenResourceError):  # the checker has seen enough
                    for at in range(0, len(answer), 7):  # in pieces, as a network may bring it
                        await asked.send_all(answer[at : at + 7])
                        await quiet(seconds=0)
            await until(lambda: exit_.backend.healthy is not None)
            nursery.cancel_scope.cancel()
        assert exit_.backend.healthy is healthy
        assert healthy == (exit_.backend.why == "")
        assert exit_.backend.why.isprintable()


async def test_a_health_path_that_hangs_up_or_hangs_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEALTH_TIMEOUT_S", 0.2)
    with Listener() as listener:
        exit_ = make_exit(listener.address, health_path="/", health_interval_s=0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exit_.backends.run)
            reset(await listener.accept())
            await until(lambda: exit_.backend.healthy is False)
            assert exit_.backend.why in ("it hung up", "Connection reset by peer")  # as the reset is met
            async with await listener.accept():  # accepts, and says nothing
                await until(lambda: exit_.backend.why == "no answer within 0.2 s")
            nursery.cancel_scope.cancel()


async def test_services_are_healthy_each_for_itself() -> None:
    with Listener() as up, Listener(listening=False) as down:
        exit_ = make_exit(f"llm={up.address}", f"tts={down.address}")
        async with checking(exit_):
            assert exit_.backends.services() == {"llm": True, "tts": False}


# Refused dials


async def test_a_refused_dial_marks_the_backend_down_and_checks_again_at_once() -> None:
    with Listener(listening=False) as listener:
        exit_ = make_exit(listener.address)
        listener.listen()
        async with running(exit_.reactor), checking(exit_):
            assert exit_.backend.healthy
            port = listener.port
            listener.close()
            answers: list[str] = []
            serve(exit_.backends, "default", lambda end, why: answers.append(why))
            await until(lambda: answers)
            assert answers == [f"backend 127.0.0.1:{port}: Connection refused"]
            assert exit_.backends.services() == {"default": False}
            assert exit_.changes[-1] == {"default": False}
            assert exit_.backends.in_flight == 0
            again = socket.create_server(("127.0.0.1", port))
            await until(lambda: exit_.changes[-1] == {"default": True})  # the interval is an hour
            again.close()


async def test_a_dial_refused_during_a_check_is_checked_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The news must not get lost because a check happens to be under way."""
    monkeypatch.setattr(module, "RECHECK_S", 0.0)
    checks = 0
    with Listener() as listener:
        exit_ = make_exit(listener.address)

        async def check(backend: Backend) -> None:
            nonlocal checks
            checks += 1
            await trio.lowlevel.checkpoint()
            if checks <= 2:
                exit_.backends.refused(backend, "refused meanwhile")

        monkeypatch.setattr(exit_.backends, "_check", check)
        async with checking(exit_):
            await until(lambda: checks == 3)  # one at the start, and one for each refusal
            await quiet()
            assert checks == 3


# Load


async def test_the_backend_with_fewer_connections_is_asked_first() -> None:
    with Listener() as one, Listener() as two:
        exit_ = make_exit(one.address)
        believe(exit_, one)
        other = Backend(exit_.backend.endpoint)
        other.healthy, other.target = True, (socket.AF_INET, (two.host, two.port))
        exit_.backends.all.append(other)
        ends: list[SocketDuplex | None] = []
        async with running(exit_.reactor):
            for _ in range(4):
                serve(exit_.backends, "default", lambda end, why: ends.append(end))
            assert [backend.in_flight for backend in exit_.backends.all] == [2, 2]
            other.healthy = False
            assert exit_.backends.services() == {"default": True}
            await until(lambda: len(ends) == 4)
            for end in ends:
                assert end is not None
                end.other = End()
                end.abort("over")
        assert exit_.backends.in_flight == 0


@pytest.mark.parametrize(
    ("load", "believed", "rtt_s", "hold_s", "is_busier"),
    [
        # near: every difference counts
        (1, 0, 0.0, 1.0, True),
        (1, 0, NEAR_S, 0.001, True),
        (100, 99, NEAR_S, 0.001, True),
        (1, 1, 0.0, 1.0, False),
        (0, 0, 0.0, 1.0, False),
        (1, 2, 0.0, 1.0, False),  # the entry believes too much, which is no reason to look elsewhere
        # far: what sharing the node with the others costs must be more than the round trip
        (1, 0, 0.15, 0.16, True),
        (1, 0, 0.15, 0.15, False),
        (4, 3, 0.15, 0.5, False),  # a quarter of 0.5 s
        (4, 2, 0.15, 0.5, True),
        (4, 3, 0.15, 0.7, True),
        (1, 0, 0.15, 0.0, False),
        (3, 9, 0.15, 60.0, False),
    ],
)
def test_who_is_sent_back(load: int, believed: int, rtt_s: float, hold_s: float, is_busier: bool) -> None:
    backends = make_exit().backends
    backends.hold_s = hold_s
    for n in range(load):
        backends.load.change(("", "another")[n % 2], +1)
    assert backends.is_busier("entry", believed, rtt_s) is is_busier


def test_what_an_entry_has_here_itself_is_not_compared() -> None:
    backends = make_exit().backends
    for _ in range(5):
        backends.load.change("entry", +1)
    assert not backends.is_busier("entry", 0, 0.0)
    assert backends.is_busier("another", 4, 0.0)
    assert not backends.is_busier("another", 5, 0.0)
    backends.load.change("", +1)
    assert backends.is_busier("entry", 0, 0.0)
    backends.hold_s = 0.9  # 1 of 6 more: what it saves is a sixth of that
    assert backends.is_busier("entry", 0, 0.149)
    assert not backends.is_busier("entry", 0, 0.151)


@pytest.mark.parametrize(
    ("slots", "capacity"), [((0,), 0), ((4,), 4), ((4, 2), 6), ((4, 0), 0)], ids=["untold", "one", "two", "one of two"]
)
def test_the_capacity_is_that_of_the_slots_where_all_tell_them(slots: tuple[int, ...], capacity: int) -> None:
    backends = make_exit(*(f"s{n}=127.0.0.1:{n + 1}" for n in range(len(slots))), capacity="auto").backends
    for backend, count in zip(backends.all, slots, strict=True):
        backend.slots = count
    assert backends.capacity == capacity
    backends.load.change("a", 5)
    assert backends.is_full is (0 < capacity <= 5)
    backends.all[0].healthy = False
    assert backends.capacity == sum(slots[1:])


def test_requests_of_others_at_a_backend_are_load_and_hold_nothing_up() -> None:
    exit_ = make_exit("127.0.0.1:1", capacity=3)
    backends, backend = exit_.backends, exit_.backend
    backends.has_outside(backend, 3)
    assert (backends.in_flight, backends.outside, backends.load.by_others("peer"), backends.is_full) == (0, 3, 3, True)
    assert backends.idle.is_set()
    backends.has_outside(backend, 1)
    backends.took(backend, "peer")
    assert (backends.in_flight, backends.load.by_others("peer"), backends.load.by_others("")) == (1, 1, 2)
    assert not backends.idle.is_set()
    backends.released(backend, "peer", None)
    assert backends.idle.is_set()
    backends.refused(backend, "gone")
    assert backends.load.by_entry == {}
    assert backends.load.in_flight == 0


@pytest.mark.parametrize(("capacity", "load", "is_full"), [(0, 10**6, False), (2, 1, False), (2, 2, True), (2, 3, True)])
def test_who_is_full(capacity: int, load: int, is_full: bool) -> None:
    backends = make_exit(capacity=capacity).backends
    backends.load.in_flight = load
    assert backends.is_full is is_full


async def test_how_long_a_connection_lasts_is_an_average_of_those_that_were_served() -> None:
    backends = make_exit("127.0.0.1:1").backends
    (backend,) = backends.all
    assert backends.hold_s == FIRST_HOLD_S
    backends.took(backend, "")
    backends.released(backend, "", FIRST_HOLD_S + 32.0)
    assert backends.hold_s == pytest.approx(FIRST_HOLD_S + 32.0 * NEWEST_WEIGHT)
    for _ in range(10 * round(1 / NEWEST_WEIGHT)):
        backends.took(backend, "entry")
        backends.released(backend, "entry", 0.25)
    assert backends.hold_s == pytest.approx(0.25, abs=0.01)
    backends.took(backend, "")
    backends.released(backend, "", None)  # the dial failed
    assert backends.hold_s == pytest.approx(0.25, abs=0.01)
    assert (backends.in_flight, backends.load.by_entry) == (0, {})


async def test_a_dial_that_came_to_nothing_is_no_short_connection() -> None:
    with Listener(listening=False) as listener:
        exit_ = make_exit(listener.address)
        believe(exit_, listener)
        answers: list[str] = []
        async with running(exit_.reactor):
            serve(exit_.backends, "default", lambda end, why: answers.append(why))
            await until(lambda: answers)
            believe(exit_, listener)
            serve(exit_.backends, "default", lambda end, why: answers.append(why)).cancel()
        assert exit_.backends.hold_s == FIRST_HOLD_S


async def test_the_reported_load_is_the_one_that_lasted() -> None:
    with Listener() as listener:
        exit_ = make_exit(listener.address)
        believe(exit_, listener)
        nobody = lambda end, why: None  # noqa: E731
        async with running(exit_.reactor):
            blip = serve(exit_.backends, "default", nobody)
            assert exit_.backends.sample_load() == 0  # it was not there at the last sample
            blip.cancel()
            assert exit_.backends.sample_load() == 0
            lasting = [serve(exit_.backends, "default", nobody) for _ in range(3)]
            assert exit_.backends.sample_load() == 0
            assert exit_.backends.sample_load() == 3
            lasting.pop().cancel()
            lasting.append(serve(exit_.backends, "default", nobody))
            assert exit_.backends.sample_load() == 2  # for a moment there were two
            assert exit_.backends.sample_load() == 3
            for serving in lasting:
                serving.cancel()
