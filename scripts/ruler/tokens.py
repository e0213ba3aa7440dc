"""Token streams over HTTP: `serve` is a model server that answers each request with one, `load` counts what comes.

A chunk leaves each stream every 2 ms in a write of its own, as from a fast model. Where a stream is held back, its server
lets the chunk fall: what a client counts in a second is what the path carries, not what has piled up behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import sys
import time

from .stats import percentile

EVERY_S = 0.002
SLOTS = 8  # of a period: the streams do not all send at once
WARM_S = 0.5
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":" token"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
_OTHER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS)
REQUEST_BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(REQUEST_BODY), REQUEST_BODY)
)


class Server:
    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self.listener, select.EPOLLIN)
        self._poll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
        self._clients: dict[int, socket.socket] = {}
        self._slots: list[dict[int, bytes]] = [{} for _ in range(SLOTS)]  # streams, and what is left of a chunk begun

    def run(self) -> None:
        """Until stdin ends."""
        at, due = 0, time.monotonic()
        while True:
            is_idle = not any(self._slots)
            for handle, _ in self._poll.poll(0.2 if is_idle else 0):
                if handle == sys.stdin.fileno():
                    return
                if handle == self.listener.fileno():
                    self._accept()
                else:
                    self._read(handle)
            now = time.monotonic()
            if is_idle:
                due = now
            elif now < due:
                time.sleep(due - now)
            else:
                self._send(self._slots[at])
                at = (at + 1) % SLOTS
                due = max(due + EVERY_S / SLOTS, now - EVERY_S)

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN)

    def _read(self, handle: int) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = self._clients[handle].recv(65536)
        if not data:
            self._drop(handle)
        elif b'"stream":true' in data.replace(b" ", b""):
            self._slots[handle % SLOTS][handle] = _HEAD
        elif data[:4] == b"GET ":
            self._clients[handle].send(_OTHER)

    def _send(self, slot: dict[int, bytes]) -> None:
        for handle, rest in list(slot.items()):
            data = rest or CHUNK
            try:
                slot[handle] = data[self._clients[handle].send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                self._drop(handle)

    def _drop(self, handle: int) -> None:
        for slot in self._slots:
            slot.pop(handle, None)
        if client := self._clients.pop(handle, None):
            client.close()


def load(port: int, streams: int, seconds: float) -> dict[str, float]:
    poll = select.epoll()
    clients: dict[int, socket.socket] = {}
    for _ in range(streams):
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(REQUEST)
        sock.setblocking(False)
        clients[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    begins = time.monotonic() + WARM_S
    last = dict.fromkeys(clients, 0.0)
    chunks = errors = 0
    gaps: list[float] = []
    while (now := time.monotonic()) < begins + seconds:
        for handle, _ in poll.poll(0.1):
            data = b""
            with contextlib.suppress(OSError):
                data = clients[handle].recv(65536)
            if not data:
                errors += 1
                poll.unregister(handle)
                continue
            now = time.monotonic()
            if now >= begins:
                chunks += (count := data.count(b"data: "))
                if last[handle]:
                    gaps += [now - last[handle]] + [0.0] * (count - 1)
                last[handle] = now
    errors += sum(not seen for seen in last.values())
    for sock in clients.values():
        sock.close()
    return {
        "chunks_per_s": chunks / seconds,
        "p99_gap_ms": percentile(sorted(gaps), 0.99) * 1e3 if gaps else float("inf"),
        "chunks": chunks,
        "errors": errors,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("serve", "load"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    if given.mode == "serve":
        server = Server()
        print(server.port, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
    else:
        print(json.dumps(load(given.port, given.streams, given.seconds)))
