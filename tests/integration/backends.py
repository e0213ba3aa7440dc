"""Small servers to put behind a node, each a process of its own: `python backends.py MODE --port N --name NAME`.

    http        answers every request with its name, after --delay; one request a connection
    cors        likewise, keeps connections, and lets any page ask and read, as llama.cpp does
    banner      speaks first, then echoes lines
    echo        echoes bytes as they come
    tail        says nothing until the client's EOF, then answers how many bytes came and their digest
    lag         like tail, but stops reading for --delay in the middle of --size bytes
    websocket   echoes messages
    reset       breaks the connection with RST on the line `reset`; writes what the client did to the journal

The journal (--journal) is for tests that ask what a backend really saw: one line per event, `<monotonic time> <what>`,
written before anything is answered. Writes go straight to the kernel, so a SIGKILL loses none.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import socket
import struct
import time
from functools import partial

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Request, TextMessage

CHUNK = 1 << 18


class Journal:
    def __init__(self, path: str | None) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else None

    def note(self, what: str) -> None:
        if self._fd is not None:
            os.write(self._fd, f"{time.monotonic():.6f} {what}\n".encode())


async def serve_http(reader, writer, options, journal) -> None:
    head = await reader.read(CHUNK)
    if not head:
        return
    # The very first bytes count as received, complete or not.
    journal.note(f"request {head.split(b' ', 2)[1].decode()}")
    while b"\r\n\r\n" not in head:
        more = await reader.read(CHUNK)
        if not more:
            return
        head += more
    await asyncio.sleep(options.delay)
    body = options.name.encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()


async def serve_cors(reader, writer, options, journal) -> None:
    """The journal has the client's address, so that it tells which requests shared a connection."""
    client = writer.get_extra_info("peername")[1]
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        journal.note(f"{first.rpartition(' ')[0]} origin={headers.get('origin')} client={client}")
        await reader.readexactly(int(headers.get("content-length", 0)))
        body = b"" if first.startswith(("OPTIONS ", "HEAD ")) else options.name.encode()
        answer = (
            f"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: {headers.get('origin', '*')}\r\n"
            "Access-Control-Allow-Credentials: true\r\nAccess-Control-Allow-Methods: GET, POST\r\n"
            f"Access-Control-Allow-Headers: *\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(answer.encode() + body)
        await writer.drain()


async def serve_banner(reader, writer, options, journal) -> None:
    writer.write(f"220 {options.name} ready\r\n".encode())
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


async def serve_echo(reader, writer, options, journal) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def serve_tail(reader, writer, options, journal) -> None:
    digest, size = hashlib.sha256(), 0
    stop_at = options.size // 2 if options.delay else None
    while data := await reader.read(CHUNK):
        digest.update(data)
        size += len(data)
        if stop_at is not None and size >= stop_at:
            stop_at = None
            journal.note("stopped")
            await asyncio.sleep(options.delay)
            journal.note("goes on")
    writer.write(f"{size} {digest.hexdigest()}\n".encode())
    await writer.drain()


async def serve_websocket(reader, writer, options, journal) -> None:
    connection = WSConnection(ConnectionType.SERVER)
    while data := await reader.read(CHUNK):
        connection.receive_data(data)
        for event in connection.events():
            if isinstance(event, Request):
                writer.write(connection.send(AcceptConnection()))
            elif isinstance(event, (TextMessage, BytesMessage)):
                # Fragments go back as fragments: `message_finished` is kept.
                writer.write(connection.send(type(event)(data=event.data, message_finished=event.message_finished)))
            elif isinstance(event, Ping):
                writer.write(connection.send(event.response()))
            elif isinstance(event, CloseConnection):
                writer.write(connection.send(event.response()))
                await writer.drain()
                return
        await writer.drain()


async def serve_reset(reader, writer, options, journal) -> None:
    lines = 0
    try:
        while line := await reader.readline():
            lines += 1
            if line == b"reset\n":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return
            writer.write(line)
            await writer.drain()
        journal.note(f"eof after {lines} lines")
    except ConnectionResetError:
        journal.note(f"reset after {lines} lines")


MODES = {
    "http": serve_http,
    "cors": serve_cors,
    "banner": serve_banner,
    "echo": serve_echo,
    "tail": serve_tail,
    "lag": serve_tail,
    "websocket": serve_websocket,
    "reset": serve_reset,
}


async def handle(options, journal, reader, writer) -> None:
    try:
        await MODES[options.mode](reader, writer, options, journal)
    except (ConnectionResetError, BrokenPipeError):
        pass
    finally:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds")
    parser.add_argument("--size", type=int, default=0, help="bytes")
    parser.add_argument("--journal")
    options = parser.parse_args()
    server = await asyncio.start_server(
        partial(handle, options, Journal(options.journal)), "127.0.0.1", options.port, limit=CHUNK, backlog=1024
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
