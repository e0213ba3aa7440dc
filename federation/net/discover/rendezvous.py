"""Finds the network's members through a public Kademlia DHT, for nodes that know no member's address.

Members provide, and look for, a key that only the token gives and that changes with the hour: an observer of the DHT can
neither find the network nor follow it. Each look has a new libp2p identity and a process of its own (dht.py) that lives for
seconds: no message of a foreign node reaches this process, and a failure costs one look. A look brings addresses and nothing
more: a peer that answers there has to prove the token like any other. A DHT node that keeps our record learns that these
addresses belong together, and may add some of its own, which cost a dial each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import FederationError
from federation.net.dial.address import PeerAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

log = structlog.get_logger(__name__)

ALONE_EVERY_S = 20.0  # while no member is connected
EVERY_S = 600.0  # for members that come later; below the hour that a key lives
LOOK_TIMEOUT_S = 90.0  # a look ends by itself before, unless its imports take longer than the look: dht.py
MAX_ANSWER_BYTES = 256 * 1024  # MAX_FOUND addresses of the longest kind, three times over
MAX_FOUND = 256
NEAR_S = 600.0  # so long before and after the hour both keys count: clocks differ, and records last


def hours(now: datetime) -> list[int]:
    """The hours whose keys count now, the current one first: hours since 1970, UTC."""
    hour = int(now.timestamp()) // 3600
    near = [int((now + timedelta(seconds=s)).timestamp()) // 3600 for s in (-NEAR_S, NEAR_S)]
    return list(dict.fromkeys((hour, *near)))


class Rendezvous:
    """`key(hour)`: a multihash. `addresses()`: those of this node. `is_alone()`: no member is connected.
    `on_found(address)` is called for each address that was found, again at each look."""

    def __init__(
        self,
        bootstraps: Sequence[str],
        *,
        key: Callable[[int], bytes],
        addresses: Callable[[], Iterable[PeerAddress]],
        is_alone: Callable[[], bool],
        on_found: Callable[[PeerAddress], None],
    ) -> None:
        self._bootstraps = bootstraps
        self._key = key
        self._addresses = addresses
        self._is_alone = is_alone
        self._on_found = on_found
        self.problem = "no look was made yet"  # of the last look; empty if it went well

    async def run(self) -> None:
        while True:
            before = self.problem
            try:
                with trio.fail_after(LOOK_TIMEOUT_S):
                    await self._look(hours(datetime.now(timezone.utc)))
                self.problem = ""
            except trio.TooSlowError:
                self.problem = f"the DHT did not answer within {LOOK_TIMEOUT_S:g} s"
            except FederationError as error:
                self.problem = error.detail
            except OSError as error:  # the process did not start
                self.problem = str(error)
            if self.problem and self.problem != before:
                log.warning("the DHT could not be asked", why=self.problem[:200])
            await trio.sleep(ALONE_EVERY_S if self.problem or self._is_alone() else EVERY_S)

    async def _look(self, counting: Sequence[int]) -> None:
        """Make one look. Raises FederationError and OSError."""
        keys = [self._key(hour).hex() for hour in counting]
        task = {
            "bootstraps": list(self._bootstraps),
            "keys": keys,
            "provided": [key for key, hour in zip(keys, counting, strict=True) if hour >= counting[0]],
            "ours": [str(PeerAddress(a.host, a.port)) for a in self._addresses() if not a.is_loopback],
        }
        isolated = ["-I"] if sys.flags.isolated else []  # an installed program reads no other Python's files
        command = [sys.executable, *isolated, "-m", "federation.net.discover.look"]
        code, answer = await _run(command, json.dumps(task).encode())
        if code != 0:  # killed by one of its limits, or for too long an answer
            raise FederationError(f"the look was given up (exit {code})")
        addresses, problem = _read(answer)
        for address in addresses:
            self._on_found(address)
        if problem:
            raise FederationError(problem)


async def _run(command: list[str], said: bytes) -> tuple[int | None, bytes]:
    """Exit code and output of a process that reads `said`; one that prints more than MAX_ANSWER_BYTES is killed."""
    answer = bytearray()
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, stdin=said, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        process = await nursery.start(run)
        async for chunk in process.stdout:
            answer += chunk
            if len(answer) > MAX_ANSWER_BYTES:
                nursery.cancel_scope.cancel()
    return process.returncode, bytes(answer)


def _read(answer: bytes) -> tuple[list[PeerAddress], str]:
    """Addresses and problem of a look. Foreign nodes wrote the addresses: check the form. Raises FederationError."""
    try:
        match json.loads(answer):
            case {"addresses": [*addresses], "problem": str(problem)}:
                return [PeerAddress.parse(text) for text in addresses[:MAX_FOUND] if isinstance(text, str)], problem
    except (ValueError, RecursionError):
        pass
    raise FederationError("the look answered nonsense")
