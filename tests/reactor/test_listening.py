from __future__ import annotations

import errno
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from federation.reactor import listening
from federation.units import HostPort, UnixPath

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from federation.units import Place


@contextmanager
def listen(place: Place) -> Iterator[list[socket.socket]]:
    sockets = listening.listen(place, 1)
    try:
        yield sockets
    finally:
        for sock in sockets:
            listening.close(sock)


def test_localhost_is_both_families_at_one_port() -> None:
    with listen(HostPort("localhost", 0)) as sockets:
        hosts = [listening.place_of(sock).host for sock in sockets]
        assert hosts == ["127.0.0.1", "::1"][: 2 if socket.has_ipv6 else 1]
        assert len({listening.place_of(sock).port for sock in sockets}) == 1


def test_a_port_that_one_family_has_taken_is_taken() -> None:
    with listen(HostPort("::1", 0)) as taken, pytest.raises(OSError) as caught:  # noqa: PT011
        listening.listen(HostPort("localhost", listening.place_of(taken[0]).port), 1)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_machine_without_ipv6_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_port(host: str, port: int, backlog: int) -> socket.socket:
        if host == "::1":
            raise OSError(errno.EADDRNOTAVAIL, "no IPv6")
        return ordinary(host, port, backlog)

    ordinary = listening._at_port
    monkeypatch.setattr(listening, "_at_port", at_port)
    with listen(HostPort("localhost", 0)) as sockets:
        assert len(sockets) == 1


def test_a_path_goes_with_its_listener(tmp_path: Path) -> None:
    place = UnixPath(str(tmp_path / "s"))
    with listen(place) as sockets:
        assert [listening.place_of(sock) for sock in sockets] == [place]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(place.path)
    assert not (tmp_path / "s").exists()


def test_a_path_that_was_left_behind_is_taken(tmp_path: Path) -> None:
    place = UnixPath(str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(place.path)
    with listen(place) as (sock,):
        assert listening.place_of(sock) == place


def test_a_path_in_use_and_a_file_of_somebody_stay(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with listen(UnixPath(str(tmp_path / "s"))):
        for name in ("s", "file"):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                listening.listen(UnixPath(str(tmp_path / name)), 1)
            assert caught.value.errno == errno.EADDRINUSE
    assert (tmp_path / "file").read_text() == "mine"
