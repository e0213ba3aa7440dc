"""Holds many keep-alive connections open, each after one answered request, until stdin ends."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys

_REQUEST = b"GET /body HTTP/1.1\r\nHost: bench\r\n\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=1000)
    given = parser.parse_args()
    held: list[socket.socket] = []
    for _ in range(given.connections):
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", given.port), timeout=5)
            sock.sendall(_REQUEST)
            if sock.recv(4096).startswith(b"HTTP/1.1 200 "):
                held.append(sock)
    print(json.dumps({"held": len(held)}), flush=True)
    sys.stdin.read()
    lost = 0
    for sock in held:
        sock.setblocking(False)
        try:
            lost += not sock.recv(1, socket.MSG_PEEK)  # the end of the stream is there to read: it was closed
        except BlockingIOError:
            pass
        except OSError:
            lost += 1
    print(json.dumps({"lost": lost}), flush=True)


if __name__ == "__main__":
    main()
