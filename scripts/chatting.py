"""The load of scripts/affinity, and what it is compared with: boxes that keep prompts cached, and people who chat.

A prompt is cut into blocks of BLOCK bytes, and a block's name is a hash of it and of all before it, as in vLLM and LocalAI.
A box finds the blocks that it has, computes the others at a price, and keeps so many of those used last. What one box alone
and dice would find is computed, on the very turns that the daemons had.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

MODEL = "chatter"
BLOCK = 256
# A chat of six turns: what it says and hears. One box finds 0.80 of its prompts: all but the newest words of each turn.
SYSTEM_BLOCKS, SAYS_BLOCKS, HEARS_BLOCKS, TURNS = 5, 2, 1, 6
ANSWER_S, BLOCK_S, THINKING_S = 0.35, 0.1, 2.0  # of an answer; of a block that is not cached; between two turns
PATIENCE_S = 60.0


def blocks_of(prompt: str) -> list[bytes]:
    """Names of the prompt's whole blocks."""
    data, name, names = prompt.encode(), b"", []
    for n in range(0, len(data) - BLOCK + 1, BLOCK):
        name = blake2b(name + data[n : n + BLOCK], digest_size=16).digest()
        names.append(name)
    return names


class Cache:
    """The blocks that one box has, at most `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._names: OrderedDict[bytes, None] = OrderedDict()

    def take(self, names: Sequence[bytes]) -> int:
        """How many of a prompt's blocks are there; afterwards all are."""
        found = next((n for n, name in enumerate(names) if name not in self._names), len(names))
        for name in reversed(names):  # the beginning of a prompt is worth most
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > self._size:
            self._names.popitem(last=False)
        return found


def text_of(who: str, blocks: int) -> str:
    """Words of so many blocks; different people say different ones."""
    size = blocks * BLOCK - len("system\n\n")
    return (f"{who}: " + " ".join(f"{who}.{n}" for n in range(size)))[:size]


def prompt_of(messages: Sequence[dict[str, str]]) -> str:
    """As a chat template writes it; every role takes as many bytes, so that each message fills whole blocks."""
    return "".join(f"{message['role'][:6]:<6}\n{message['content']}\n" for message in messages)


def messages_of(system: str, chat: str, turn: int) -> list[dict[str, str]]:
    """What the chat sends in that turn; the first one is 1."""
    messages = [{"role": "system", "content": text_of(system, SYSTEM_BLOCKS)}]
    for n in range(1, turn + 1):
        messages.append({"role": "user", "content": text_of(f"{chat}, {n}", SAYS_BLOCKS)})
        if n < turn:
            messages.append({"role": "assistant", "content": text_of(f"answer to {chat}, {n}", HEARS_BLOCKS)})
    return messages


class Turn(NamedTuple):
    """One request as it reached a box: when it did and was answered, and what it found."""

    began: float
    ended: float
    box: int
    names: list[bytes]
    found: int


class Found(NamedTuple):
    cached: float  # of all blocks of prompts
    busiest: float  # the busiest box's load over the mean, averaged over time


def found_by(turns: Sequence[Turn], boxes: int) -> Found:
    busy = [0.0] * boxes
    for turn in turns:
        busy[turn.box] += turn.ended - turn.began
    blocks = sum(len(turn.names) for turn in turns)
    cached = sum(turn.found for turn in turns) / blocks if blocks else float("nan")
    return Found(cached, max(busy) * boxes / sum(busy) if sum(busy) else float("nan"))


def elsewhere(turns: Sequence[Turn], boxes: int, size: int, choose: Callable[[], int]) -> Found:
    """What boxes find where `choose()` says which one gets a turn. A turn takes as long as what it finds says."""
    caches = [Cache(size) for _ in range(boxes)]
    moved = []
    for turn in sorted(turns, key=lambda turn: turn.began):
        box = choose()
        found = caches[box].take(turn.names)
        longer = BLOCK_S * (turn.found - found)
        moved.append(turn._replace(box=box, found=found, ended=turn.ended + longer))
    return found_by(moved, boxes)


# Boxes


@dataclass
class Box:
    """A model server. `rng`: how long its answers are."""

    number: int
    size: int
    rng: random.Random
    pace: float = 1.0  # seconds of the clock that a second of work takes
    turns: list[Turn] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._cache = Cache(self.size)
        self.turns = []

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            while True:
                first, body = await read_message(reader)
                if body:
                    writer.write(written("HTTP/1.1 200 OK", await self._answer(body)))
                elif first.startswith("GET /v1/models "):
                    writer.write(written("HTTP/1.1 200 OK", {"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
                else:
                    writer.write(written("HTTP/1.1 404 Not Found", {"error": {"message": "no such path"}}))
                await writer.drain()
        writer.close()

    async def _answer(self, body: bytes) -> dict[str, Any]:
        names = blocks_of(prompt_of(json.loads(body)["messages"]))
        began = time.monotonic()
        found = self._cache.take(names)
        await asyncio.sleep(self.pace * (BLOCK_S * (len(names) - found) + ANSWER_S * self.rng.uniform(0.5, 1.5)))
        self.turns.append(Turn(began / self.pace, time.monotonic() / self.pace, self.number, names, found))
        usage = {"prompt_tokens": len(names), "prompt_tokens_details": {"cached_tokens": found}}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
        return {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


async def read_message(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """First line and body of a request or an answer that tells its length, as both sides here do."""
    first, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    sizes = [int(line.partition(":")[2]) for line in fields if line.lower().startswith("content-length:")]
    return first, await reader.readexactly(sizes[0]) if sizes else b""


def written(first: str, what: dict[str, Any]) -> bytes:
    body = json.dumps(what).encode()
    head = f"{first}\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# Clients


@dataclass
class Crowd:
    """`at_once` people chat, each turn through an entry by chance, until `total` chats are over."""

    entries: Sequence[tuple[str, int]]
    at_once: int
    total: int
    rng: random.Random
    pace: float = 1.0
    errors: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)  # of each turn

    async def run(self) -> None:
        chats = iter(range(self.total))
        await asyncio.gather(*(self._person(chats) for _ in range(self.at_once)))

    async def _person(self, chats: Iterator[int]) -> None:
        await asyncio.sleep(self.pace * self.rng.random() * 5)
        for chat in chats:  # of all people together
            for turn in range(1, TURNS + 1):
                began = time.monotonic()
                try:
                    await asyncio.wait_for(self._ask(messages_of("system", f"chat {chat}", turn)), PATIENCE_S)
                except (OSError, EOFError, asyncio.TimeoutError) as error:
                    self.errors.append(f"chat {chat}, turn {turn}: {error!r}")
                self.took_s.append((time.monotonic() - began) / self.pace)
                await asyncio.sleep(self.pace * self.rng.expovariate(1 / THINKING_S))

    async def _ask(self, messages: list[dict[str, str]]) -> None:
        reader, writer = await asyncio.open_connection(*self.rng.choice(self.entries))
        try:
            writer.write(written("POST /v1/chat/completions HTTP/1.1", {"model": MODEL, "messages": messages}))
            first, body = await read_message(reader)
            if first.split(" ")[1] != "200":
                raise OSError(f"{first}: {body[:200]!r}")
        finally:
            writer.close()
