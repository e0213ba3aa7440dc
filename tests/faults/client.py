"""The clients of one entry: `python client.py --entry HOST:PORT --run NAME --journal FILE`, until SIGTERM.

Ten short requests a second, two streams of 30 s at any time, and 2 MiB down or up every two seconds; each on a connection of
its own, and all at a pace that does not depend on the answers. Every byte is compared with what it must be. FILE gets one
JSON line a connection; those that SIGTERM finds unfinished say so.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import time
from typing import Any

from server import CHUNK, content

SHORT_EVERY_S = 0.1
BULK_EVERY_S = 2.0
STREAMS = 2
SILENCE_S = 30.0  # without a byte: the client gives up
LAST_WORDS_S = 4.0  # for what is short, after SIGTERM


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(0, len(data), CHUNK):
        writer.write(data[at : at + CHUNK])
        await writer.drain()


async def exchange(host: str, port: int, target: str, record: dict[str, Any]) -> None:
    """One connection. Raises OSError, TimeoutError or ValueError; fills in the record as it goes."""
    is_upload = target.startswith("/upload/")
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), SILENCE_S)
    sending = None
    try:
        request = f"{'PUT' if is_upload else 'GET'} {target} HTTP/1.1\r\nHost: faults\r\nConnection: close\r\n\r\n".encode()
        sending = asyncio.create_task(write(writer, request + content(target) if is_upload else request))
        expected = b"ok" if is_upload else content(target)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SILENCE_S)
        record["first_byte"] = time.monotonic()
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError(head.split(b"\r\n")[0].decode(errors="replace"))
        record["by"] = head.partition(b"X-Backend: ")[2].split(b"\r\n")[0].decode()
        while data := await asyncio.wait_for(reader.read(CHUNK), SILENCE_S):
            due = expected[record["bytes"] :][: len(data)]
            if data != due:
                record["wrong"] += sum(map(int.__ne__, data, due)) + len(data) - len(due)
            record["bytes"] += len(data)
        if record["bytes"] < len(expected):
            raise ValueError(f"ended after {record['bytes']} of {len(expected)} bytes")
        await sending
    finally:
        if sending is not None:
            sending.cancel()
        writer.transport.abort()


class Clients:
    def __init__(self, host: str, port: int, run: str, journal: int) -> None:
        self.host, self.port, self.run, self.journal = host, port, run, journal
        self.open: dict[asyncio.Task[None], dict[str, Any]] = {}

    def begin(self, kind: str, number: int) -> asyncio.Task[None]:
        target = f"/{kind}/{self.run}/{number}"
        record = {"kind": kind, "target": target, "started": time.monotonic(), "bytes": 0, "wrong": 0, "error": ""}
        task = asyncio.create_task(self.one(target, record))
        self.open[task] = record
        task.add_done_callback(self.open.pop)
        return task

    async def one(self, target: str, record: dict[str, Any]) -> None:
        try:
            await exchange(self.host, self.port, target, record)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            record["error"] = f"{type(error).__name__}: {error}"
        self.write(record)

    def write(self, record: dict[str, Any]) -> None:
        os.write(self.journal, json.dumps(record | {"finished": time.monotonic()}).encode() + b"\n")

    async def at_a_pace(self, every_s: float, *kinds: str) -> None:
        for number in itertools.count():
            self.begin(kinds[number % len(kinds)], number)
            await asyncio.sleep(every_s)

    async def streams(self, first: int) -> None:
        await asyncio.sleep(first)  # not all of them in step
        for number in itertools.count(first * 1000):
            await self.begin("stream", number)
            await asyncio.sleep(SHORT_EVERY_S)

    async def serve(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        paces = [self.at_a_pace(SHORT_EVERY_S, "short"), self.at_a_pace(BULK_EVERY_S, "bulk", "upload")]
        tasks = [asyncio.create_task(pace) for pace in (*paces, *map(self.streams, range(STREAMS)))]
        await stop.wait()
        for task in tasks:
            task.cancel()
        short = [task for task, record in self.open.items() if record["kind"] != "stream"]
        if short:
            await asyncio.wait(short, timeout=LAST_WORDS_S)
        for record in self.open.values():
            self.write(record | {"error": "unfinished"})
        os._exit(0)  # the kernel closes what is open


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entry", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--journal", required=True)
    options = parser.parse_args()
    host, _, port = options.entry.rpartition(":")
    journal = os.open(options.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    asyncio.run(Clients(host, int(port), options.run, journal).serve())


if __name__ == "__main__":
    main()
