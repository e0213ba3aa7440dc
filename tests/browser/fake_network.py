"""A node that answers the control API from a made-up network: any number of machines, in every state, with any names."""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta, timezone
from typing import Any

from federation.errors import NotDone

GIB = 2**30
NAMES = [
    "athens",
    "bergen",
    "cusco",
    "dakar",
    "essen",
    "fargo",
    "genoa",
    "hanoi",
    "izmir",
    "jaipur",
    "kyoto",
    "lima",
    "malmo",
    "narvik",
    "osaka",
    "porto",
]
ATTACK = '<img src=x onerror="window.attacked=1">'
KEY = "k" * 43
CODE = f"fed100_{'v1va28QYWDQ' * 5}"
COMMAND, TOKEN = "federation join --token-file -", f"fed1_{'v1va28QYWDQ' * 9}"


class FakeNetwork:
    refusal: str | None = None  # to hand over this version

    def __init__(self, machines: int, *, seed: int = 1, names: list[str] | None = None) -> None:
        self.random = random.Random(seed)
        self.started = datetime.now(timezone.utc)
        self.total = 0
        self.per_second = 0.0
        self.draining = False
        self.owner_here = False
        self.banned_rows: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.past: list[list[float | None]] = []  # of each machine
        self.notify_to = ""
        self.tests_sent = 0
        self.orders: list[tuple[str, str]] = []
        self.decisions: list[dict[str, Any]] = []
        self.invite_rows: list[dict[str, Any]] = []
        self.waiting: list[dict[str, Any]] = []
        self.wishes: list[Any] = []  # about invites and newcomers
        self.model_rows: list[dict[str, Any]] = []
        wanted = names or [NAMES[i] if i < len(NAMES) else f"rack{i // 16}-{i % 16:02}" for i in range(machines)]
        self.rows = [self._row(i, name) for i, name in enumerate(wanted)]

    def _row(self, i: int, name: str) -> dict[str, Any]:
        total = (24, 16, 48, 8, 80, 0)[i % 6] * GIB
        return {
            "peer_id": f"12D3KooW{self.random.getrandbits(160):040x}{i:04}",
            "name": name,
            "self": i == 0,
            "online": True,
            "state": "online" if total else "no backend",
            "last_seen": self.started.isoformat(),
            "last_seen_age_s": 0.4,
            "available_vram": round(total * self.random.uniform(0.15, 0.95)),
            "total_vram": total,
            "gpus": [{"name": "RTX 4090", "total_vram": total, "available_vram": total // 2}] if total else [],
            "in_flight": 0,
            "in_flight_here": 0,
            "served": 0,
            "capacity": 0,
            "services": {"default": True} if total else {},
            "draining": False,
            "path": "self" if i == 0 else "direct",
            "rtt_ms": None if i == 0 else round(self.random.uniform(0.3, 40), 3),
            "version": "0.1.0",
            "addresses": [f"/ip4/10.0.{i // 200}.{i % 200 + 1}/tcp/4484"],
        }

    def set_state(self, name: str, state: str) -> None:
        row = next(row for row in self.rows if row["name"] == name)
        gone = state in ("offline", "left")
        row.update(state=state, online=not gone, path="none" if gone or state == "unreachable" else "direct")
        row["draining"] = state == "draining"
        if gone:
            row.update(in_flight=0, in_flight_here=0)
        if state == "backend down":
            row["services"] = {"default": False}

    def add_model(
        self, name: str, warm: tuple[str, ...] = (), cold: tuple[str, ...] = (), size: int = 0, **more: Any
    ) -> None:
        """A model, in memory at those machines and on disk at these; `more` is what only newer versions tell of it."""
        rows = {row["name"]: row for row in self.rows}
        places = [
            {
                "peer_id": rows[at]["peer_id"], "name": at, "state": rows[at]["state"], "service": "default",
                "kind": "ollama", "warm": at in warm, "size": size, "slots": 0, "in_flight": rows[at]["in_flight"],
            }
            for at in (*warm, *cold)
        ]  # fmt: skip
        self.model_rows.append({"name": name, "size": size, "places": places, **more})

    def connect(self) -> dict[str, Any]:
        """One more connection, to whom the policy would choose."""
        able = [row for row in self.rows if row["state"] == "online" and any(row["services"].values())]
        chosen = min(able, key=lambda row: (row["in_flight"], row["served"], -row["available_vram"]))
        self.total += 1
        candidates = [
            {
                "peer_id": row["peer_id"],
                "name": row["name"],
                "in_flight": row["in_flight"],
                "last_used_age_s": round(self.random.uniform(1, 20), 3) if row["served"] else None,
                "available_vram": row["available_vram"],
                "served": row["served"],
            }
            for row in able
        ]
        lightest = [row for row in able if row["in_flight"] == chosen["in_flight"]]
        tier = "only" if len(able) == 1 else "in_flight" if len(lightest) == 1 else "last_used"
        decision = {
            "id": self.total,
            "request": 1,
            "at": datetime.now(timezone.utc).isoformat(),
            "service": "default",
            "client": f"127.0.0.1:{self.random.randrange(40000, 60000)}",
            "attempt": 2 if self.total % 11 == 0 else 1,
            "chosen": chosen["peer_id"],
            "name": chosen["name"],
            "tier": tier,
            "failed": None,
            "ended": None,
            "candidates": candidates,
        }
        chosen["served"] += 1
        chosen["in_flight"] += 1
        chosen["in_flight_here"] += 1
        self.decisions.append(decision)
        return decision

    def step(self, t: float, calm: float = 1.0) -> list[dict[str, Any]]:
        """One second of traffic, at `t` s: waves, so that the time line has something to show; `calm` times as much."""
        for row in self.rows:
            ended = sum(self.random.random() < 0.35 for _ in range(row["in_flight"]))
            row["in_flight"] -= ended
            row["in_flight_here"] -= ended
        able = [row for row in self.rows if row["state"] == "online" and row["services"]]
        wanted = round(calm * (3 + 2.4 * math.sin(t / 21) + math.sin(t / 5)) * max(1, len(able)) ** 0.7) if able else 0
        self.per_second = 0.9 * self.per_second + 0.1 * max(0, wanted)
        return [self.connect() for _ in range(max(0, wanted))]

    # What the control API asks of a node

    def status(self) -> dict[str, Any]:
        own = self.rows[0]
        now = datetime.now(timezone.utc)
        return {
            "node": {
                "peer_id": own["peer_id"],
                "name": own["name"],
                "version": own["version"],
                "addresses": own["addresses"],
                "listens": {"default": "127.0.0.1:8484"},
                "listeners": [{"service": "default", "address": "127.0.0.1:8484"}],
                "p2p": "0.0.0.0:4484",
                "control": "127.0.0.1:8485",
                "services": own["services"],
                "gpu": {
                    "source": "fixed",
                    "note": "",
                    "total_vram": own["total_vram"],
                    "available_vram": own["available_vram"],
                },
                "in_flight": own["in_flight"],
                "draining": self.draining,
                "uptime_s": round((now - self.started) / timedelta(seconds=1), 3),
                "state_dir": "/home/me/.local/state/federation",
                "pid": 4242,
            },
            "network": {
                "id": "f25c72b7c5653ef5",
                "name": "homelab",
                "peers_online": sum(row["online"] for row in self.rows),
                "peers_known": len(self.rows),
                "services": self.services(),
                "invite_addresses": own["addresses"],
                "owner_here": self.owner_here,
            },
            "connections": {
                "now": sum(row["in_flight_here"] for row in self.rows),
                "total": self.total,
                "failed": 0,
                "retried": 0,
                "received": 400 * self.total,
                "delivered": 90_000 * self.total,
            },
            "rates": {
                "connections_per_s": self.per_second,
                "failed_per_s": 0.0,
                "retried_per_s": 0.0,
                "received_per_s": 400 * self.per_second,
                "delivered_per_s": 90_000 * self.per_second,
                "bytes_per_s": 90_400 * self.per_second,
            },
            "warnings": [
                f"known but not reachable from here: {row['name']}" for row in self.rows if row["state"] == "unreachable"
            ],
        }

    def services(self) -> dict[str, dict[str, int]]:
        offered = [row for row in self.rows if row["online"] and row["services"]]
        return {"default": {"nodes": len(offered), "up": sum(row["state"] == "online" for row in offered)}}

    def peers(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.rows]

    def explain(self, last: int, connection: int | None = None) -> list[dict[str, Any]]:
        if connection is None:
            return self.decisions[-last:]
        ended = {"peer_id": "", "seconds": 1.8, "received": 412, "delivered": 90_210, "error": None}
        return [decision | {"ended": ended} for decision in self.decisions if decision["id"] == connection]

    def turned_away(self, last: int, connection: int | None = None) -> list[dict[str, Any]]:
        return []

    def models(self) -> dict[str, Any]:
        return {"models": list(self.model_rows), "incomplete": [], "silent": []}

    async def keys(self) -> dict[str, Any]:
        return {"keys": [], "asked_off_loopback": False, "asked_on_loopback": False, "entries": 1, "entries_counted": 1}

    def connections(self, most: int) -> dict[str, Any]:
        rows = [
            {
                "id": i + 1, "request": i % 3 + 1, "service": "default", "model": "gemma3:27b" if i % 2 else "",
                "client": f"192.0.2.{i % 250}:{40000 + i}", "peer": row["peer_id"], "name": row["name"], "since_s": 3.5 * i,
                "received": 400 * i, "delivered": 90_000 * i, "attempts": 1, "state": "open",
            }
            for i, row in enumerate(row for row in self.rows for _ in range(row["in_flight_here"]))
        ]  # fmt: skip
        return {"total": len(rows), "connections": rows[:most]}

    def banned(self) -> dict[str, Any]:
        return {"banned": list(self.banned_rows)}

    def ban(self, peer: str) -> None:
        row = next(row for row in self.rows if row["peer_id"] == peer)
        row.update(state="banned", online=False, path="none")
        self.banned_rows.append({"peer_id": peer, "name": row["name"], "since": "2026-11-02T10:00:00+00:00"})

    def unban(self, peer: str) -> None:
        self.banned_rows = [row for row in self.banned_rows if row["peer_id"] != peer]

    def log_lines(self, after: int, last: int) -> dict[str, Any]:
        lines = [line for line in self.lines if line["number"] > after][-last:]
        return {"lines": lines, "next": self.lines[-1]["number"] if self.lines else 0}

    def log(self, event: str, level: str = "info", **fields: Any) -> None:
        at = datetime.now(timezone.utc).isoformat()
        self.lines.append({"timestamp": at, "level": level, "event": event, "number": len(self.lines) + 1, **fields})

    async def examine(self) -> dict[str, Any]:
        return {"findings": self.findings}

    def history(self, peer: str | None) -> dict[str, Any]:
        steps = len(self.past[0]) if self.past else 1
        loads = self.past or [[0.0] for _ in self.rows]
        begun = round(datetime.now(timezone.utc).timestamp()) - 120 * steps
        rows = [
            {"peer_id": row["peer_id"], "name": row["name"], "load": load}
            for row, load in zip(self.rows, loads, strict=True)
        ]
        own = next((row for row in rows if row["peer_id"] == peer), None)
        well = own and [None if n is None else float(n > 0) for n in own["load"]]
        machine = own and own | {"well": well, "available_vram": [GIB] * steps}
        zeros = [0.0] * steps
        totals = {name: zeros for name in ("connections", "failed", "retried", "received", "delivered")}
        return {
            "at": begun, "step_s": 120, "covers_s": 120.0 * steps, "memory": 43_200, "open": zeros, "totals": totals,
            "machines": [] if peer else rows[:7],
            "others": zeros if not peer and len(rows) > 7 else None, "machine": machine,
        }  # fmt: skip

    async def order(self, peer: str, order: str) -> dict[str, Any]:
        self.orders.append((peer, order))
        row = next(row for row in self.rows if row["peer_id"] == peer)
        row.update(draining=order == "drain", state="draining" if order == "drain" else "online")
        return {"peer_id": peer, "name": row["name"], "draining": row["draining"], "in_flight": 0, "clients": 0}

    def notices(self) -> dict[str, Any]:
        told = {"told": self.tests_sent, "waiting": 0, "dropped": 0, "problem": ""}
        return {"to": self.notify_to, "tells": True, **told}

    async def try_notices(self) -> dict[str, Any]:
        self.tests_sent += 1
        return self.notices()

    def invites(self) -> dict[str, Any]:
        return {"invites": self.invite_rows, "waiting": self.waiting}

    async def make_invite(self, wish: Any) -> dict[str, Any]:
        self.wishes.append(wish)
        return {"code": CODE, "note": "only from here"}

    async def revoke_invite(self, which: str) -> dict[str, Any]:
        self.wishes.append(f"revoke {which}")
        self.invite_rows = []
        return self.invites()

    async def approve(self, peer: str) -> dict[str, Any]:
        return self._decide("approve", peer)

    async def refuse(self, peer: str) -> dict[str, Any]:
        return self._decide("refuse", peer)

    def _decide(self, verb: str, peer: str) -> dict[str, Any]:
        self.wishes.append(f"{verb} {peer}")
        self.waiting = [row for row in self.waiting if row["peer_id"] != peer]
        return self.invites()

    def invite(self) -> dict[str, Any]:
        return {"token": TOKEN, "command": COMMAND}

    async def hand_over(self, archive: str | None, address: str | None) -> dict[str, Any]:
        if self.refusal is not None:
            raise NotDone(self.refusal)
        return {
            "line": "u=http://10.0.0.5:8485/handover/x/install.sh; sh", "version": "0.9.0", "archive": "a.tar.gz",
            "sha256": "ab" * 32, "lifetime_s": 3600.0, "invite": "0123abcd",
            "base": f"http://{address or '10.0.0.5:8485'}", "other_bases": [],
        }  # fmt: skip

    def handed_over(self, name: str) -> None:
        return None

    def _drain(self, on: bool) -> None:
        self.draining = self.rows[0]["draining"] = on
        self.rows[0]["state"] = "draining" if on else "online"

    def drain(self) -> None:
        self._drain(True)

    def undrain(self) -> None:
        self._drain(False)

    def drain_status(self) -> dict[str, Any]:
        return {"draining": self.draining, "in_flight": self.rows[0]["in_flight"], "clients": 0}
