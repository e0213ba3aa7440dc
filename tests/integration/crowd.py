"""Many clients of one entry, in one process: `python crowd.py HOST PORT KIND COUNT`, until its standard input ends.

    idle    connects and says nothing
    slow    sends a byte of its request a second
    deaf    sends half a megabyte, and never reads what comes back
    uploads sends without end what nobody has asked for

A line says how many connects were accepted; after it, a line with how many are still open each time a line comes in.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys


async def client(address, kind: str, opened: asyncio.Queue) -> None:
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        await opened.put(None)
        return
    await opened.put(writer)
    try:
        if kind == "slow":
            for n in b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n":
                writer.write(bytes([n]))
                await asyncio.sleep(1)
        elif kind == "deaf":
            writer.transport.pause_reading()
            writer.write(bytes(512 * 1024))
            await asyncio.sleep(3600)
        elif kind == "uploads":
            while True:
                writer.write(bytes(65536))
                await writer.drain()
        await reader.read()
    except OSError:
        pass
    finally:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=["idle", "slow", "deaf", "uploads"])
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    opened: asyncio.Queue = asyncio.Queue()
    tasks, writers = [], []
    for start in range(0, options.count, 100):  # the listener's backlog is shorter than the crowd
        batch = min(100, options.count - start)
        tasks += [asyncio.ensure_future(client((options.host, options.port), options.kind, opened)) for _ in range(batch)]
        writers += [await opened.get() for _ in range(batch)]
    print(sum(writer is not None for writer in writers), flush=True)  # noqa: T201
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(sum(not task.done() for task in tasks), flush=True)  # noqa: T201
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
