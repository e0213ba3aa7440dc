"""Notices of machines that die and return, to the address of --notify-url; deaths.py says when, webhook.py sends.

All nodes of a network with such an address see the same death. Each says so in its record (`notifies`), unless its own last
try failed, and the one with the lowest peer id of those that a node is linked with, itself included, tells. So one tells
as long as their views agree; on each side of a cut network one does. A node that stops tells nothing.

What did not arrive is tried again for GIVE_UP_S; meanwhile at most MAX_WAITING events wait, and travel in one message.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import structlog
import trio

from federation.errors import NotDone
from federation.ops.alerts.deaths import News, Sight, Watch
from federation.ops.alerts.webhook import Address, Message, NotDelivered, post
from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from federation.mesh.records import NodeData
    from federation.ops import schemas, shapes
    from federation.ops.parts import Parts

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
TOGETHER_S = 0.5  # machines that die at one switch are one message
MAX_WAITING = 64
MAX_NAMED = 10
FIRST_RETRY_S, LAST_RETRY_S, GIVE_UP_S = 5.0, 300.0, 3600.0
ANNOUNCEMENTS = 2.0  # in a network whose nodes announce rarely, silence is so many announcements that did not come


class Waiting(NamedTuple):
    news: News
    others: int  # machines that were well when it was noticed
    since: float


class Notices:
    def __init__(self, node: Parts, *, send: Callable[[Address, Message], Awaitable[None]] = post) -> None:
        self._node = node
        self._send = send
        self._watch = Watch()
        self._heard_at: dict[str, float] = {}  # trio time; of machines without a link
        self._trouble_since: dict[str, float] = {}
        self._waiting: deque[Waiting] = deque()
        self._news = trio.Event()
        self._again = trio.Event()  # another address: what waits is sent there now
        self._url = node.facts.settings.notify_url
        self._problem = ""
        self.told = self.dropped = 0

    # For people

    @property
    def address(self) -> Address | None:
        url = self._node.facts.settings.notify_url
        return None if url is None else Address.of(url.get_secret_value())

    def status(self) -> shapes.Notices:
        address = self.address
        return {
            "to": address.shown if address else "",
            "tells": address is not None and self._tells(),
            "told": self.told,
            "waiting": len(self._waiting),
            "dropped": self.dropped,
            "problem": self._problem if address else "",
        }

    async def try_out(self) -> None:
        """Send a message that says that it is a test. Raises NotDelivered, or NotDone without an address."""
        address = self.address
        if address is None:
            raise NotDone("this node has no address for notices; start it with --notify-url URL, or --notify-url-file FILE")
        name = self._node.facts.settings.name
        await self._send(address, Message(f"{name}: a test", "Notices of machines that die would come here.", False))
        self._worked()

    def findings(self) -> list[schemas.Finding]:
        """For the doctor."""
        if self.address is None:
            fix = "to be told: join with --notify-url URL (ntfy, Slack, any webhook), then run `federation notify`"
            others = [r.name or r.peer_id for r in self._node.ledger.records() if r.notifies and not r.left]
            if others:
                return [_finding("ok", f"sent by {', '.join(others[:3])}")]
            return [_finding("info", "nobody is told when a machine dies", fix)]
        if self._problem:
            return [
                _finding(
                    "fail", f"{self._problem}; {len(self._waiting)} wait", "correct --notify-url, then `federation notify`"
                )
            ]
        return [_finding("ok", f"of machines that die and return: to {self.address.shown}, {self.told} so far")]

    # Running

    async def run(self) -> None:
        """Look, and tell, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_forever)
            while True:
                self.look()
                await trio.sleep(LOOK_EVERY_S)

    def met(self, peer_id: str) -> None:
        """A link to this machine is up, or its first record came: whichever is later, it counts as seen from then on."""
        row = self._node.ledger.get(peer_id)
        if self._url is not None and row is not None and not row.record.left and peer_id not in self._node.bans:
            self._watch.meet(peer_id, self._sight(row.record, trio.current_time()))

    def look(self) -> None:
        """Look at all machines once. What a node saw that is not the one to tell it does not tell later."""
        if self._url != self._node.facts.settings.notify_url:  # by SIGHUP
            self._url = self._node.facts.settings.notify_url
            self._changed("")
            self._again.set()
        if self._url is None or self._node.stop.is_set():  # its own links end now
            return
        now = trio.current_time()
        seen, gone = self._sights(now)
        news = self._watch.look(now, seen, gone)
        if not news or not self._tells():
            return
        well = sum(not sight.trouble for sight in seen.values())
        for each in news:
            log.warning("a machine died" if each.kind == "died" else "a machine is back", peer=each.peer_id, name=each.name)
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(Waiting(each, well, now))
        self._news.set()

    def _sights(self, now: float) -> tuple[dict[str, Sight], frozenset[str]]:
        node = self._node
        records = [record for record in node.ledger.records() if record.peer_id != node.peer_id]
        gone = frozenset(record.peer_id for record in records if record.left or record.peer_id in node.bans)
        seen = {record.peer_id: self._sight(record, now) for record in records if record.peer_id not in gone}
        for known in (self._heard_at, self._trouble_since):
            for peer_id in known.keys() - seen.keys():
                del known[peer_id]
        return seen, gone

    def _sight(self, record: NodeData, now: float) -> Sight:
        node, peer_id = self._node, record.peer_id
        wait_s = max(node.facts.settings.notify_after_s, ANNOUNCEMENTS * record.announce_every_s)
        link = node.host.links.get(peer_id)
        if link is not None and not link.suspect:
            self._heard_at[peer_id] = now
            if record.services and not any(record.services.values()):
                return Sight(record.name, "no server", self._trouble_since.setdefault(peer_id, now), wait_s)
            self._trouble_since.pop(peer_id, None)
            return Sight(record.name, "", now, wait_s)
        self._trouble_since.pop(peer_id, None)
        # Without a link of ours: its records still come by way of others, if only the way between us is cut.
        age = (node.clock.utc_now() - record.last_seen).total_seconds()
        heard_at = max(self._heard_at.get(peer_id, now - age), now - age)
        return Sight(record.name, "silent", heard_at, wait_s, is_linked=link is not None)

    def _tells(self) -> bool:
        node = self._node
        ready = {
            record.peer_id
            for record in node.ledger.records()
            if record.notifies and not record.left and (link := node.host.links.get(record.peer_id)) and not link.suspect
        } - {node.peer_id}
        if node.facts.notifies or not ready:
            ready.add(node.peer_id)
        return min(ready) == node.peer_id

    async def _tell_forever(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            while not self._waiting:
                self._news = trio.Event()
                await self._news.wait()
            await trio.sleep(TOGETHER_S)
            self._give_up(trio.current_time())
            batch, address = list(self._waiting), self.address
            if not batch or address is None:
                self._waiting.clear()
                continue
            try:
                await self._send(address, self._message(batch))
            except NotDelivered as error:
                self._failed(str(error))
                self._again = trio.Event()
                with trio.move_on_after(retry_s):
                    await self._again.wait()
                retry_s = min(LAST_RETRY_S, 2 * retry_s)
                continue
            retry_s = FIRST_RETRY_S
            self.told += 1
            self._worked()
            told = set(map(id, batch))
            self._waiting = deque(one for one in self._waiting if id(one) not in told)

    def _failed(self, why: str) -> None:
        if why != self._problem:
            log.warning("a notice did not arrive; it is sent again", why=why, waiting=len(self._waiting))
        self._changed(why)

    def _worked(self) -> None:
        if self._problem:
            log.info("notices arrive again")
        self._changed("")

    def _changed(self, problem: str) -> None:
        self._problem, facts = problem, self._node.facts
        if facts.notices_fail != bool(problem):
            facts.notices_fail = bool(problem)
            self._node.gossip.stir()

    def _give_up(self, now: float) -> None:
        while self._waiting and self._waiting[0].since < now - GIVE_UP_S:
            self._waiting.popleft()
            self.dropped += 1
            log.warning("a notice is given up: its address did not take it for an hour", dropped=self.dropped)

    def _message(self, batch: list[Waiting]) -> Message:
        node = self._node
        own, network = node.facts.settings.name, node.token.name or node.token.network_id
        died = [waiting for waiting in batch if waiting.news.kind == "died"]
        back = [waiting for waiting in batch if waiting.news.kind == "returned"]
        titles = [f"{_names(died)} {'does' if len(died) == 1 else 'do'} not answer"] if died else []
        titles += [f"{_names(back)} {'is' if len(back) == 1 else 'are'} back"] if back else []
        lines = [self._line(waiting.news) for waiting in batch[:MAX_NAMED]]
        if len(batch) > MAX_NAMED:
            lines.append(f"and {len(batch) - MAX_NAMED} more")
        if len(died) > 1 and died[-1].others == 0:
            lines.append(f"{own} hears no other machine at all: it may be cut off itself.")
        facts = {
            "network": network,
            "told_by": own,
            "events": [
                {"kind": w.news.kind, "peer_id": w.news.peer_id, "name": w.news.name, "trouble": w.news.trouble,
                 "at": node.clock.utc_of(w.news.at).isoformat(timespec="seconds")}
                for w in batch
            ],
        }  # fmt: skip
        return Message(f"{network}: {'; '.join(titles)}", "\n".join(lines), bool(died), facts)

    def _line(self, news: News) -> str:
        name, at = visible(news.name) or news.peer_id, self._node.clock.utc_of(news.at).strftime("%H:%M:%S UTC")
        if news.kind == "returned":
            return f"{name} is back since {at}."
        return f"{name}: {'its server has not answered' if news.trouble == 'no server' else 'not heard of'} since {at}."


def _finding(severity: schemas.Severity, finding: str, fix: str = "") -> schemas.Finding:
    return {"check": "notices", "severity": severity, "finding": finding, "fix": fix}


def _names(batch: list[Waiting]) -> str:
    names = [visible(waiting.news.name) or waiting.news.peer_id for waiting in batch]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
