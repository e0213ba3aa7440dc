"""The rule alone; the three ports that follow it are in tests/integration/test_accept_errors.py."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from structlog.testing import capture_logs

from federation.reactor.accepting import COMPLAIN_EVERY_S, PAUSE_S, Accepting

if TYPE_CHECKING:
    from trio.testing import MockClock


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("code", "pause_s", "said"),
    [
        (errno.EPERM, 0, []),
        (errno.EPROTO, 0, []),
        (errno.ENETDOWN, 0, []),
        (errno.ECONNABORTED, 0, []),
        (errno.EMFILE, PAUSE_S, ["no descriptor left for a client; accepting pauses"]),
        (errno.ENOMEM, PAUSE_S, ["no descriptor left for a client; accepting pauses"]),
        (errno.EIO, PAUSE_S, ["accepting a client failed; it is tried again"]),
        (None, PAUSE_S, ["accepting a client failed; it is tried again"]),
    ],
)
def test_one_lost_client_costs_nothing_and_the_rest_is_said_before_a_pause(
    code: int | None, pause_s: float, said: list[str]
) -> None:
    with capture_logs() as logs:
        assert Accepting("a client", Clock()).pause_after(OSError(code, "no") if code else OSError("no")) == pause_s
    assert [entry["event"] for entry in logs] == said


def test_what_goes_on_is_said_now_and_then() -> None:
    clock = Clock()
    accepting = Accepting("a client", clock)
    with capture_logs() as logs:
        for _ in range(100):
            accepting.pause_after(OSError(errno.EIO, "no"))
        assert [entry["why"] for entry in logs] == ["EIO: Input/output error"]
        accepting.out_of_descriptors()  # another matter
        assert len(logs) == 2
        clock.now += COMPLAIN_EVERY_S + 1
        accepting.pause_after(OSError(errno.EIO, "no"))
        assert len(logs) == 3


async def test_the_next_connection_comes_after_any_error(autojump_clock: MockClock) -> None:
    failures = [errno.EIO, errno.EMFILE, errno.EPERM]
    stream = object()

    class Failing:
        async def accept(self) -> object:
            await trio.lowlevel.checkpoint()
            if failures:
                raise OSError(failures.pop(), "on purpose")
            return stream

    started = trio.current_time()
    with capture_logs():
        assert await Accepting("a peer").next(Failing()) is stream  # type: ignore[arg-type]
    assert trio.current_time() - started == pytest.approx(2 * PAUSE_S)


async def test_a_listener_that_we_closed_is_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        await listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await Accepting("a peer").next(listener)
