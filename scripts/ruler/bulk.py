"""Bulk transfers: a sink for uploads and a client that down- or uploads on several streams at once.

Both ends let the kernel drop what arrives (recv with MSG_TRUNC copies nothing on TCP), so that their share of the two
cores stays small beside the forwarders'. What the bytes are is checked before the measuring, by curl and a checksum.
nginx writes a request's body to disk or parses it on its way to a backend: uploads go to this sink instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import select
import socket
import sys
import time

_CHUNK = 1 << 20
_SCRATCH = bytearray(_CHUNK)  # never written: recv_into wants one all the same
_STALLED_S = 30  # nothing moved for so long: what is open counts as failed
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class _Upload:
    """The sink's side of one connection, which may carry one request after the other."""

    __slots__ = ("digest", "head", "left", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.left = -1  # -1: within a request's head
        self.digest: hashlib._Hash | None = None

    def receive(self) -> bool:
        """False: it ended."""
        if self.left < 0:
            data = self.sock.recv(65536)
            if not data:
                return False
            self.head += data
            head, end, body = self.head.partition(b"\r\n\r\n")
            if not end:
                return True
            self.head = b""
            self.left = content_length(head) - len(body)
            self.digest = hashlib.sha256(body) if b" /sha256 " in head.split(b"\r\n")[0] else None
        elif self.digest is not None:
            data = self.sock.recv(min(self.left, _CHUNK))
            self.digest.update(data)
            if not data:
                return False
            self.left -= len(data)
        else:
            taken = self.sock.recv_into(_SCRATCH, min(self.left, _CHUNK), socket.MSG_TRUNC)
            if not taken:
                return False
            self.left -= taken
        if self.left == 0:
            answer = self.digest.hexdigest().encode() if self.digest else b"ok"
            self.sock.sendall(_OK % (len(answer), answer))
            self.left = -1
        return True


def serve() -> None:
    """Until stdin ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
    uploads: dict[int, _Upload] = {}
    while True:
        for handle, _ in poll.poll():
            if handle == listener.fileno():
                sock, _ = listener.accept()
                uploads[sock.fileno()] = _Upload(sock)
                poll.register(sock, select.EPOLLIN)
            elif handle == sys.stdin.fileno():
                return
            else:
                upload = uploads[handle]
                try:
                    alive = upload.receive()
                except OSError:
                    alive = False
                if not alive:
                    del uploads[handle]
                    upload.sock.close()


class _Transfer:
    """The client's side of one connection: one request, its answer, the next request."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self.sock = sock
        self.size = size
        self.left = 0  # bytes of the body that are still to go, or to come
        self.answer = b""

    def ask(self) -> None:
        raise NotImplementedError

    def advance(self) -> bool:
        """Called when the socket is ready for `wants`. True: the request is done."""
        raise NotImplementedError

    @property
    def wants(self) -> int:
        return select.EPOLLIN

    def _read(self) -> None:
        data = self.sock.recv(4096)
        if not data:
            raise EOFError
        self.answer += data


class _Push(_Transfer):
    """Done when the sink has answered: only that says that all has arrived."""

    _data = memoryview(bytes(range(256)) * (_CHUNK // 256))

    def ask(self) -> None:
        self.answer = b""
        self.left = self.size
        self.sock.sendall(b"POST /sink HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n" % self.size)

    @property
    def wants(self) -> int:
        return select.EPOLLOUT if self.left else select.EPOLLIN

    def advance(self) -> bool:
        if self.left:
            self.left -= self.sock.send(self._data[: self.left])
            return False
        self._read()
        return self.answer.endswith(b"ok")


class _Pull(_Transfer):
    def ask(self) -> None:
        self.answer = b""
        self.left = -1  # until the answer's head has told
        self.sock.sendall(b"GET /file HTTP/1.1\r\nHost: bench\r\nRange: bytes=0-%d\r\n\r\n" % (self.size - 1))

    def advance(self) -> bool:
        if self.left < 0:
            self._read()
            head, end, body = self.answer.partition(b"\r\n\r\n")
            if end:
                if not head.startswith(b"HTTP/1.1 206 "):
                    raise EOFError
                self.left = content_length(head) - len(body)
        else:
            taken = self.sock.recv_into(_SCRATCH, min(self.left, _CHUNK), socket.MSG_TRUNC)
            if not taken:
                raise EOFError
            self.left -= taken
        return self.left == 0


class Load:
    """`streams` connections, each moving `size` bytes; then again on the same one, until `seconds` have passed."""

    def __init__(self, port: int, *, upload: bool, streams: int, size: int, seconds: float) -> None:
        self._kind = _Push if upload else _Pull
        self._port = port
        self._streams = streams
        self._size = size
        self._seconds = seconds
        self._poll = select.epoll()
        self._transfers: dict[int, _Transfer] = {}
        self._moved = 0

    def run(self) -> dict[str, float]:
        errors = 0
        for _ in range(self._streams):
            try:
                sock = socket.create_connection(("127.0.0.1", self._port), timeout=5)
            except OSError:
                errors += 1
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._transfers[sock.fileno()] = self._kind(sock, self._size)
        start = self._last = time.monotonic()
        self._until = start + self._seconds
        for transfer in self._transfers.values():
            transfer.ask()
            transfer.sock.setblocking(False)
            self._poll.register(transfer.sock, transfer.wants)
        while self._transfers:
            ready = self._poll.poll(_STALLED_S)
            if not ready:
                errors += len(self._transfers)
                break
            errors += sum(not self._step(self._transfers[handle]) for handle, _ in ready)
        return {"bytes": self._moved, "seconds": self._last - start, "errors": errors}

    def _step(self, transfer: _Transfer) -> bool:
        """False: it failed."""
        wanted = transfer.wants
        done = failed = False
        try:
            done = transfer.advance()
            if done:
                self._moved += self._size
                self._last = time.monotonic()
                if self._last < self._until:
                    transfer.ask()
                    done = False
        except (OSError, EOFError):
            failed = True
        if done or failed:
            del self._transfers[transfer.sock.fileno()]
            transfer.sock.close()
        elif transfer.wants != wanted:
            self._poll.modify(transfer.sock, transfer.wants)
        return not failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("serve", "down", "up"))
    parser.add_argument("--port", type=int)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--size", type=int, default=64 << 20)
    parser.add_argument("--seconds", type=float, default=0)
    given = parser.parse_args()
    if given.mode == "serve":
        serve()
        return
    up = given.mode == "up"
    load = Load(given.port, upload=up, streams=given.streams, size=given.size, seconds=given.seconds)
    print(json.dumps(load.run()))


if __name__ == "__main__":
    main()
