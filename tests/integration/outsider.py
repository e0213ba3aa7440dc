"""Strangers at a p2p port: `python outsider.py HOST PORT SECONDS --record FILE`; one line of JSON says what became of them.

They come from sixteen addresses beside 127.0.0.1, which is the members'. FILE holds the bytes of a member's handshake.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import time
from collections import Counter
from pathlib import Path

import rsa_keys
from libp2p.security.noise.pb.noise_pb2 import NoiseHandshakePayload
from noise.connection import Keypair, NoiseConnection

HELLO = b"\x13/multistream/1.0.0\n"
NOISE = b"\x14/federation/noise/1\n"
IDLE = 2000
PAUSE_S = 0.01  # between two connects of one kind
DEADLINE_S = 20.0
HUGE = [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff\x7f", b"\xff" * 8 + b"\x7f", HELLO + NOISE + b"\xff\xff"]

lasted: Counter[str] = Counter()
held: dict[str, float] = {}


async def connect(address):
    return await asyncio.open_connection(*address, local_addr=(f"127.0.0.{random.randrange(2, 18)}", 0))


async def until_hung_up(kind: str, address, *, data: bytes = b"", a_byte_every_s: float = 0.0) -> None:
    began = time.monotonic()
    try:
        reader, writer = await connect(address)
    except OSError:
        lasted[f"{kind}: refused"] += 1
        return
    try:
        if a_byte_every_s:
            sending = asyncio.ensure_future(drip(writer, data, a_byte_every_s))
        else:
            sending = None
            writer.write(data)
        await asyncio.wait_for(reader.read(), DEADLINE_S)
        lasted[kind] += 1
    except asyncio.TimeoutError:
        lasted[f"{kind}: never hung up on"] += 1
    except OSError:
        lasted[kind] += 1
    finally:
        if sending is not None:
            sending.cancel()
        writer.transport.abort()
        held[kind] = max(held.get(kind, 0.0), time.monotonic() - began)


async def drip(writer, data: bytes, every_s: float) -> None:
    for n in range(len(data)):
        writer.write(data[n : n + 1])
        await asyncio.sleep(every_s)


async def flood(address, blob: bytes) -> None:
    """A huge length, and then as many bytes as the victim takes."""
    _, writer = await connect(address)
    try:
        writer.write(blob)
        for _ in range(64):
            writer.write(bytes(1 << 20))
            await writer.drain()
        lasted["huge length: 64 MiB taken"] += 1
    except OSError:
        lasted["huge length"] += 1
    finally:
        writer.transport.abort()


async def identify(kind: str, address, key: bytes) -> None:
    """A whole handshake, as who has `key`."""
    began = time.monotonic()
    noise = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
    noise.set_keypair_from_private_bytes(Keypair.STATIC, os.urandom(32))
    noise.set_as_initiator()
    noise.start_handshake()
    try:
        reader, writer = await connect(address)
    except OSError:
        lasted[f"{kind}: refused"] += 1
        return

    async def talk() -> None:
        writer.write(HELLO + NOISE + (32).to_bytes(2, "big") + noise.write_message(b""))
        await reader.readexactly(len(HELLO + NOISE))
        noise.read_message(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        last = noise.write_message(NoiseHandshakePayload(identity_key=key, identity_sig=b"s").SerializeToString())
        writer.write(len(last).to_bytes(2, "big") + last)
        await reader.read()

    try:
        await asyncio.wait_for(talk(), DEADLINE_S)
        lasted[kind] += 1
    except asyncio.TimeoutError:
        lasted[f"{kind}: never hung up on"] += 1
    except (OSError, asyncio.IncompleteReadError):
        lasted[kind] += 1
    finally:
        writer.transport.abort()
        held[kind] = max(held.get(kind, 0.0), time.monotonic() - began)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--only", metavar="KIND", help="one kind of them all the time")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    address, handshake = (options.host, options.port), options.record.read_bytes()
    slow_key = rsa_keys.proth()
    ends = time.monotonic() + options.seconds
    running: set[asyncio.Task] = set()

    def start(coroutine) -> None:
        task = asyncio.ensure_future(coroutine)
        running.add(task)
        task.add_done_callback(running.discard)

    slow = {
        "silent": lambda _: until_hung_up("silent", address),
        "a byte a second": lambda _: until_hung_up(
            "a byte a second", address, data=HELLO + NOISE + bytes(100), a_byte_every_s=1.0
        ),
    }
    quick = {
        "random bytes": lambda _: until_hung_up("random bytes", address, data=os.urandom(random.randrange(1, 5000))),
        "half a handshake": lambda n: until_hung_up(
            "half a handshake", address, data=handshake[: 1 + n * 7 % len(handshake)]
        ),
        "a handshake replayed": lambda _: until_hung_up("a handshake replayed", address, data=handshake),
        "huge length": lambda n: flood(address, HUGE[n % len(HUGE)]),
        "a key of 4 kB": lambda _: identify("a key of 4 kB", address, slow_key),
    }
    if options.only is None:
        for begin in slow.values():
            start(begin(0))
    elif options.only == "idle":
        quick = {}
    else:
        quick = {options.only: {**slow, **quick}[options.only]}
    for n in range(1_000_000 if quick else 0):
        if time.monotonic() > ends:
            break
        for begin in quick.values():
            start(begin(n))
        await asyncio.sleep(PAUSE_S * 4)
    for _ in range(IDLE if options.only in (None, "idle") else 0):
        start(until_hung_up("idle", address))
        await asyncio.sleep(PAUSE_S / 10)
    while running:
        await asyncio.wait(running)
    print(json.dumps({"outcomes": lasted, "held_s": held}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
