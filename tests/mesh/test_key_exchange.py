"""Client keys from member to member, over real links; and what a member that breaks the rules costs."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.errors import NotDone, NotFound, StateDirUnusable
from federation.mesh import key_exchange
from federation.mesh.client_keys import Statement, id_of, new_text
from federation.mesh.key_exchange import HEARD_AT_ONCE, RETRIES, KeyExchange
from federation.mesh.tokens import Token
from federation.net import wire
from federation.state import StateDir
from tests.support.hosts import Peer, assert_serves, peers
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

TOKEN = Token(b"n" * 32, "testnet")
PROTOCOL = TOKEN.keys_protocol()


class Member:
    def __init__(self, peer: Peer, directory: Path) -> None:
        self.peer = peer
        self.state = StateDir(directory / peer.id)
        self.state.lock()
        self.changes = 0
        self.exchange = self.start()

    def start(self) -> KeyExchange:
        return KeyExchange(
            host=self.peer.host, token=TOKEN, state=self.state, utc_now=lambda: datetime.now(timezone.utc),
            on_change=self.changed, rng=random.Random(1),
        )  # fmt: skip

    def changed(self) -> None:
        self.changes += 1

    async def add(self, name: str) -> str:
        text = new_text()
        await self.exchange.add(text, Statement(id_of(text), self.peer.id, self.exchange.now_ms, name))
        return text

    def knows(self, text: str) -> bool:
        found = self.exchange.table.find(text)
        return found is not None and not found.is_revoked

    def refuses(self, text: str) -> bool:
        found = self.exchange.table.find(text)
        return found is not None and found.is_revoked


@asynccontextmanager
async def members(directory: Path, count: int, *, links: Sequence[tuple[int, int]] = ()) -> AsyncIterator[list[Member]]:
    """Members of which those pairs are linked; none listens to events of links but by `linked`."""
    async with peers(count) as hosts, trio.open_nursery() as nursery:
        found = [Member(peer, directory) for peer in hosts]
        for member in found:
            nursery.start_soon(member.exchange.run)
        for a, b in links:
            await linked(found[a], found[b])
        yield found
        nursery.cancel_scope.cancel()


async def linked(a: Member, b: Member) -> None:
    a.peer.knows(b.peer)
    await until(lambda: b.peer.id in a.peer.host.links and a.peer.id in b.peer.host.links)
    for here, there in ((a, b), (b, a)):
        here.exchange.peer_up(here.peer.host.links[there.peer.id])


async def test_all_linked_members_hear_at_once(tmp_path: Path) -> None:
    async with members(tmp_path, 3, links=[(0, 1), (0, 2), (1, 2)]) as (ada, bea, cyd):
        text = await ada.add("phone")
        await until(lambda: bea.knows(text) and cyd.knows(text))
        with pytest.raises(NotDone, match="there is a key"):
            await cyd.add("phone")
        assert await bea.exchange.revoke("phone") == 1
        await until(lambda: ada.refuses(text) and cyd.refuses(text))
        with pytest.raises(NotFound):
            await cyd.exchange.revoke("phone")
        assert [member.changes for member in (ada, bea, cyd)] == [2, 2, 2]


async def test_it_goes_round_links_that_are_missing(tmp_path: Path) -> None:
    async with members(tmp_path, 4, links=[(0, 1), (1, 2), (2, 3)]) as (ada, _, _, dan):
        texts = [await ada.add(f"k{n}") for n in range(3)]
        await until(lambda: all(map(dan.knows, texts)))


async def test_on_a_new_link_both_learn_what_they_missed(tmp_path: Path) -> None:
    async with members(tmp_path, 2) as (ada, bea):
        texts = [await ada.add(f"a{n}") for n in range(100)]  # more than travel unasked
        others = [await bea.add(f"b{n}") for n in range(70)]
        await ada.exchange.revoke("a7")
        await linked(ada, bea)
        await until(lambda: len(ada.exchange.table) == len(bea.exchange.table) == 170)
        assert ada.exchange.table.summary == bea.exchange.table.summary
        assert bea.refuses(texts[7])
        assert all(map(ada.knows, others))


async def test_what_was_heard_is_on_disk(tmp_path: Path) -> None:
    async with members(tmp_path, 2, links=[(0, 1)]) as (ada, bea):
        stays, goes = await ada.add("stays"), await ada.add("goes")
        await until(lambda: bea.knows(goes))
        await ada.exchange.revoke("goes")
        await until(lambda: bea.refuses(goes))

        def again() -> bool:
            table = bea.start().table
            return table.summary == bea.exchange.table.summary and table.find(stays) is not None

        await until(again)


async def test_a_damaged_table_stops_the_start_and_anothers_network_is_not_taken_over(tmp_path: Path) -> None:
    async with members(tmp_path, 1) as (ada,):
        await ada.add("phone")
        path = ada.state.path / "client-keys.json"
        whole = path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600
        assert ada.state.load_client_keys("another") == []
        for damaged in (whole[:-20], '{"network": 1}', "[]", whole.replace('": [', '": ["AAAA", ')):
            path.write_text(damaged)
            if damaged == '{"network": 1}':
                continue  # another network's
            with pytest.raises(StateDirUnusable, match="damaged"):
                ada.start()
        path.write_text(whole)
        ada.start()


async def test_a_key_that_cannot_be_saved_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with members(tmp_path, 1) as (ada,):

        def full(*_: Any) -> None:
            raise StateDirUnusable("no space")

        monkeypatch.setattr(ada.state, "save_client_keys", full)
        with pytest.raises(StateDirUnusable):
            await ada.add("phone")
        assert len(ada.exchange.table) == 0
        monkeypatch.undo()
        await ada.add("phone")


async def test_an_older_version_is_left_alone_after_some_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_exchange, "RETRY_S", 0.01)
    async with peers(2) as (new, old), trio.open_nursery() as nursery:
        ada = Member(new, tmp_path)
        tries = 0
        real = new.host.open_stream

        async def counted(peer_id: str, protocol: str) -> Any:
            nonlocal tries
            tries += 1
            return await real(peer_id, protocol)

        monkeypatch.setattr(new.host, "open_stream", counted)
        nursery.start_soon(ada.exchange.run)
        new.knows(old)
        await until(lambda: new.has(old))
        ada.exchange.peer_up(new.host.links[old.id])
        await until(lambda: tries == RETRIES + 1 and not ada.exchange._talking)
        for n in range(5):
            await ada.add(f"k{n}")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert tries == RETRIES + 1
        assert new.has(old)
        nursery.cancel_scope.cancel()


def forged(name: str = "forged") -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(b"e" * 32)
    return key.public_key().public_bytes_raw() + b"\0" * 64 + msgpack.packb([0, b"i" * 32, 1, name, [], 0, 0, 0])


@pytest.mark.parametrize(
    "said",
    [
        [[[b"s" * 32]], [[forged()]]],
        [[[b"s" * 31]], []],
        [[], []],
        [[[b"s" * 32]], [["text"]]],
        [[[b"s" * 32]], [[b"x"]] * 65],
    ],
)
async def test_a_member_that_breaks_the_rules_costs_its_link(tmp_path: Path, said: list[Any]) -> None:
    async with peers(3) as (here, evil, honest):
        ada = Member(here, tmp_path)
        for other in (evil, honest):
            other.knows(here)
        await until(lambda: here.has(evil, honest))
        stream = await evil.host.open_stream(here.id, PROTOCOL)
        for message in said:
            await wire.send(stream, message)
        await until(lambda: here.has(honest))
        assert len(ada.exchange.table) == 0
        await assert_serves(here, honest)


async def test_exchanges_without_end_have_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_exchange, "HEARD_A_SECOND", 0.001)
    async with peers(2) as (here, other):
        ada = Member(here, tmp_path)
        other.knows(here)
        await until(lambda: here.has(other))
        answered = 0
        for _ in range(int(HEARD_AT_ONCE) + 3):
            async with await other.host.open_stream(here.id, PROTOCOL) as stream:
                await wire.send(stream, [[ada.exchange.table.summary]])
                await wire.send(stream, [])
                answered += await stream.receive_some(1) != b""
        assert answered == HEARD_AT_ONCE
        assert here.has(other), "it is no offence"
