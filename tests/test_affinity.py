"""scripts/affinity: what it computes, by hand; and its boxes and people, without a daemon between them."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from chatting import (  # noqa: E402
    BLOCK,
    BLOCK_S,
    Box,
    Cache,
    Crowd,
    Turn,
    blocks_of,
    elsewhere,
    found_by,
    messages_of,
    prompt_of,
)  # fmt: skip


def prompt(chat: str, turn: int) -> list[bytes]:
    return blocks_of(prompt_of(messages_of("system", chat, turn)))


def test_a_turn_begins_with_all_that_the_chat_had_and_all_chats_with_the_system_text() -> None:
    sizes = [len(prompt("a", turn)) for turn in range(1, 7)]
    assert sizes == [7, 10, 13, 16, 19, 22]
    assert prompt("a", 6)[:19] == prompt("a", 5)
    assert [one == other for one, other in zip(prompt("a", 1), prompt("b", 1), strict=True)] == [True] * 5 + [False] * 2


def test_a_block_is_named_by_all_before_it() -> None:
    one, other = blocks_of("x" * BLOCK + "same" * BLOCK), blocks_of("y" * BLOCK + "same" * BLOCK)
    assert not set(one) & set(other)
    assert blocks_of("x" * (BLOCK - 1)) == []


def test_a_cache_keeps_what_was_used_last_and_the_beginning_longest() -> None:
    cache = Cache(4)
    assert cache.take([b"a", b"b", b"c"]) == 0
    assert cache.take([b"a", b"b", b"d"]) == 2
    assert cache.take([b"x"]) == 0  # which c made room for
    assert cache.take([b"a", b"b", b"c"]) == 2
    assert Cache(2).take([b"a", b"b", b"c"]) == 0


def test_one_box_alone_finds_all_but_the_newest_words_and_dice_find_less() -> None:
    """The figures of issue 14: 0.80 and 0.59."""
    turns = []
    for n in range(36 * 6):
        names = prompt(f"chat {n % 36}", n // 36 + 1)
        turns.append(Turn(n, n + 0.7, 0, names, max(5 if n else 0, len(names) - 3 if n >= 36 else 0)))
    alone = elsewhere(turns, 1, 4096, lambda: 0)
    assert alone.cached == found_by(turns, 1).cached == pytest.approx(0.80, abs=0.01)
    assert alone.busiest == 1
    dice = random.Random(1)
    assert elsewhere(turns, 3, 4096, lambda: dice.randrange(3)).cached == pytest.approx(0.59, abs=0.02)


def test_the_busiest_is_averaged_over_time_and_a_turn_that_finds_less_takes_longer() -> None:
    turns = [Turn(0, 3, 0, [b"a"], 0), Turn(1, 2, 1, [b"a", b"b"], 1), Turn(2, 4, 2, [b"a"], 1)]
    assert found_by(turns, 3) == (0.5, 1.5)
    spread = iter((0, 1, 2))
    moved = elsewhere(turns, 3, 9, lambda: next(spread))
    assert moved.cached == 0
    assert moved.busiest == pytest.approx(3 * 3 / (3 + 1 + 2 + 2 * BLOCK_S))


def test_people_chat_with_a_box() -> None:
    async def chat() -> tuple[Crowd, Box]:
        box = Box(0, 4096, random.Random(1), pace=0.001)
        async with await box.start():
            crowd = Crowd([("127.0.0.1", box.port)], 2, 3, random.Random(1), pace=0.001)
            await crowd.run()
        return crowd, box

    crowd, box = asyncio.run(chat())
    assert crowd.errors == []
    assert len(box.turns) == len(crowd.took_s) == 18
    assert found_by(box.turns, 1).cached == pytest.approx(0.80, abs=0.03)


def test_a_refused_turn_is_an_error() -> None:
    async def chat() -> Crowd:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 503 no\r\nContent-Length: 2\r\n\r\nno")
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            crowd = Crowd([server.sockets[0].getsockname()], 1, 1, random.Random(1), pace=0.001)
            await crowd.run()
        return crowd

    assert len(asyncio.run(chat()).errors) == 6


@pytest.mark.parametrize("arguments", [["--nodes", "0"], ["--pace", "0"], ["--total", "x"]])
def test_bad_usage(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "affinity.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"scripts/affinity: error: {'argument ' if arguments[0] != '--pace' else ''}"
    )
