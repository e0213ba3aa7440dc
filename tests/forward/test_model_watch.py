"""Which backends are asked for their models, when, and what a change does. Servers over real sockets, the real clock."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.forward import model_watch as module
from federation.forward.model_watch import ModelWatch
from federation.forward.models.asking import Answer, Asker
from federation.forward.models.dialects import Queue
from federation.mesh.models import MAX_SLOTS, Model, unpack
from federation.units import Endpoint, HostPort
from tests.support.exits import Exit, checking, make_exit
from tests.support.links import until
from tests.support.model_servers import serving
from tests.support.sockets import Listener, quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OLLAMA: dict[str, Any] = {"/": "Ollama is running", "/api/tags": {"models": [{"name": "m"}]}, "/api/ps": {"models": []}}
OPENAI: dict[str, Any] = {"/v1/models": {"data": [{"id": "o"}]}}


@dataclass
class Watched:
    exit: Exit
    models: ModelWatch
    changes: list[dict[str, dict[str, bool]]] = field(default_factory=list)  # service -> model -> is it warm


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("EVERY_S", 0.1), ("LEAST_S", 0.02), ("OTHER_EVERY_S", 0.3), ("SILENT_EVERY_S", 3600.0)):
        monkeypatch.setattr(module, name, seconds)


@asynccontextmanager
async def watching(*backends: str, **settings: Any) -> AsyncIterator[Watched]:
    exit_ = make_exit(*backends, **settings)
    watched: Watched

    def changed() -> None:
        watched.changes.append(
            {
                service: {model.name: model.warm for model in listed.models}
                for service, listed in unpack(watched.models.packed).items()
            }
        )

    watched = Watched(exit_, ModelWatch(exit_.backends, on_change=changed))
    async with checking(exit_), trio.open_nursery() as nursery:
        await nursery.start(watched.models.run)
        yield watched
        nursery.cancel_scope.cancel()


async def test_models_are_there_from_the_start_and_their_changes_are_told() -> None:
    pages = dict(OLLAMA)
    with serving(pages) as port:
        async with watching(f"http://127.0.0.1:{port}") as watched:
            assert watched.changes == [{"default": {"m": False}}]
            assert watched.models.catalogs()["default"].kind == "ollama"
            pages["/api/ps"] = {"models": [{"name": "m"}]}
            await until(lambda: watched.changes[-1] == {"default": {"m": True}})
            pages["/api/tags"] = {"models": [{"name": "m"}, {"name": "n"}]}
            await until(lambda: watched.changes[-1] == {"default": {"m": True, "n": False}})
            assert len(watched.changes) == 3


async def test_a_server_is_recognised_once_and_then_asked_for_its_own_paths_alone() -> None:
    asked: list[str] = []
    with serving(OPENAI, asked=asked) as port:
        async with watching(f"http://127.0.0.1:{port}") as watched:
            first = len(asked)
            await until(lambda: len(asked) >= first + 3)
            assert set(asked[first:]) == {"/v1/models"}
            assert len(watched.changes) == 1


async def test_a_backend_that_answers_its_clients_in_http_is_asked_and_its_service_is_http() -> None:
    asked: list[str] = []
    with serving(OLLAMA, asked=asked) as port:
        async with watching(f"127.0.0.1:{port}") as watched:
            assert (asked, watched.models.http) == ([], ())
            backend = watched.exit.backend
            backend.repute.heard(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert watched.models.http == ("default",), "at once: the next client is one of HTTP"
            await until(lambda: watched.changes[-1] == {"default": {"m": False}})
            backend.repute.again()
            assert watched.models.http == ("default",)


async def test_a_web_server_that_its_clients_have_told_of_is_asked_more_and_more_rarely() -> None:
    asked: list[str] = []
    with serving({}, asked=asked) as port:
        async with watching(f"127.0.0.1:{port}") as watched:
            backend = watched.exit.backend
            backend.repute.heard(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            known = watched.models._known[backend]
            before = known.next_s
            await until(lambda: known.next_s >= 8 * before)
            assert asked
            assert watched.models.http == ("default",)
            backend.repute.again()
            backend.repute.heard(b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n")
            assert watched.models.http == (), "redis has its place now"


async def test_asked_at_once_when_somebody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 3600.0)
    pages = dict(OLLAMA)
    with serving(pages) as port:
        async with watching(f"llm=http://127.0.0.1:{port}") as watched:
            pages["/api/ps"] = {"models": [{"name": "m"}]}
            watched.models.look("other")
            watched.models.look("llm")
            await until(lambda: watched.changes[-1] == {"llm": {"m": True}})


@pytest.mark.parametrize(
    ("scheme", "settings", "is_asked"),
    [("http://", {}, True), ("", {"health_path": "/"}, True), ("", {}, False), ("tcp://", {"health_path": "/"}, False)],
)
async def test_which_backends_are_asked(scheme: str, settings: dict[str, Any], is_asked: bool) -> None:
    asked: list[str] = []
    with serving(OLLAMA, asked=asked) as port:
        async with watching(f"{scheme}127.0.0.1:{port}", **settings) as watched:
            await quiet()
            assert bool(watched.changes) is is_asked
            assert ("/api/tags" in asked) is is_asked


async def test_the_usual_port_of_a_model_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(OLLAMA) as port:
        monkeypatch.setattr(module, "USUAL_PORTS", {port})
        async with watching(f"127.0.0.1:{port}") as watched:
            assert watched.changes


async def test_a_server_of_another_protocol_at_such_a_port_gets_one_question() -> None:
    with Listener() as listener:
        exit_ = make_exit(f"http://{listener.address}")
        models = ModelWatch(exit_.backends, on_change=lambda: None)
        seen: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                while True:
                    async with await listener.accept() as stream:
                        if data := await stream.receive_some():
                            seen.append(data)
                            await stream.send_all(b"-ERR unknown command\r\n")

            nursery.start_soon(serve)
            await nursery.start(exit_.backends.run)
            await nursery.start(models.run)
            await quiet(seconds=0.4)
            assert len(seen) == 1
            assert models.catalogs() == {}
            exit_.backends.refused(exit_.backend, "gone")  # and another one when it comes up again: it may be another server
            await until(lambda: len(seen) == 2)
            nursery.cancel_scope.cancel()


async def test_a_server_that_is_down_keeps_what_it_said_until_it_says_something_else() -> None:
    with serving(OLLAMA) as port:
        async with watching(f"http://127.0.0.1:{port}", health_interval_s=0.1) as watched:
            pass
    exit_ = make_exit(f"http://127.0.0.1:{port}", health_interval_s=0.1)
    models = ModelWatch(exit_.backends, on_change=lambda: None)
    async with trio.open_nursery() as nursery:
        with serving(OLLAMA) as port:
            exit_.backend.endpoint = Endpoint("default", HostPort("127.0.0.1", port), "http")
            await nursery.start(exit_.backends.run)
            await nursery.start(models.run)
            assert unpack(models.packed)["default"].models == (Model("m"),)
        await until(lambda: exit_.backend.healthy is False)
        assert unpack(models.packed)["default"].models == (Model("m"),)
        with serving(OPENAI) as port:  # another server at that place
            exit_.backend.endpoint = Endpoint("default", HostPort("127.0.0.1", port), "http")
            await until(lambda: unpack(models.packed)["default"].models == (Model("o", True),))
            assert models.catalogs()["default"].kind == "openai"
        nursery.cancel_scope.cancel()
    assert watched.changes == [{"default": {"m": False}}]


async def test_a_server_without_models_is_asked_rarely_and_noticed_when_it_has_some() -> None:
    pages: dict[str, Any] = {"/": "a web server"}
    with serving(pages) as port:
        async with watching(f"http://127.0.0.1:{port}") as watched:
            assert watched.changes == []
            pages.update(OPENAI)
            await until(lambda: watched.changes == [{"default": {"o": True}}])
            pages.clear()
            await until(lambda: watched.changes[-1] == {})
            assert watched.models.packed == b""


async def test_a_server_that_loads_says_nothing_for_a_moment() -> None:
    pages = dict(OLLAMA)
    asked: list[str] = []
    with serving(pages, asked=asked) as port:
        async with watching(f"http://127.0.0.1:{port}") as watched:
            tags = pages.pop("/api/tags")
            await until(lambda: asked.count("/api/tags") >= 4)
            assert unpack(watched.models.packed)["default"].models == (Model("m"),)
            pages["/api/tags"] = {"models": [*tags["models"], {"name": "n"}]}
            await until(lambda: len(unpack(watched.models.packed)["default"].models) == 2)


async def test_half_of_an_answer_calls_no_model_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def fall_silent(self: Asker, path: str) -> Answer | None:
        nonlocal asked
        if path == "/api/ps" and watched.changes:
            self.is_silent = True
            asked += 1
            return None
        return await ask(self, path)

    ask = Asker._ask
    watched = Watched(make_exit(), None)  # type: ignore[arg-type]  # until it runs
    monkeypatch.setattr(Asker, "_ask", fall_silent)
    with serving({**OLLAMA, "/api/ps": {"models": [{"name": "m"}]}}) as port:
        async with watching(f"http://127.0.0.1:{port}") as watched:
            await until(lambda: asked >= 3)
            assert watched.changes == [{"default": {"m": True}}]


async def test_a_queue_is_known_and_is_no_change() -> None:
    pages = {
        "/health": "ok", "/props": {"total_slots": 2}, "/v1/models": {"data": [{"id": "m"}]},
        "/slots": [{"is_processing": False}],
    }  # fmt: skip
    with serving(pages) as port:
        async with watching(f"http://127.0.0.1:{port}") as watched:
            backend = watched.exit.backend
            said = watched.models.said(backend)
            assert said is not None
            assert said.queue == Queue(0, 0)
            assert said.catalog.models == (Model("m", True, 0, 2),)
            pages["/slots"] = [{"is_processing": True}]
            await until(lambda: (s := watched.models.said(backend)) is not None and s.queue == Queue(1, 0))
            assert len(watched.changes) == 1


async def test_a_slow_server_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_LOOK_S", 0.05)
    with Listener() as listener, trio.fail_after(20):
        async with watching(f"http://{listener.address}") as watched:
            assert watched.changes == []


async def test_one_more_backend_while_it_runs() -> None:
    with serving(OLLAMA) as port:
        async with watching() as watched:
            assert watched.exit.backends.services() == {}
            endpoint = Endpoint("default", HostPort("127.0.0.1", port), "http")
            watched.models.follow(watched.exit.backends.offer(endpoint))
            await until(lambda: watched.changes == [{"default": {"m": False}}])
            assert watched.exit.backends.services() == {"default": True}


SLOTS: dict[str, Any] = {
    "/health": {}, "/v1/models": {"data": [{"id": "g", "aliases": ["h"]}]}, "/props": {"total_slots": 2},
    "/slots": [{"is_processing": False}] * 2,
}  # fmt: skip


async def test_slots_make_the_capacity_and_requests_of_others_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_EVERY_S", 0.1)
    pages = dict(SLOTS)
    with serving(pages, headers={"Server": "llama.cpp"}) as port:
        async with watching(f"http://127.0.0.1:{port}", capacity="auto") as watched:
            backends = watched.exit.backends
            assert backends.capacity == 2
            backends.took(backends.all[0], "peer")
            pages["/slots"] = [{"is_processing": True}] * 2
            await until(lambda: backends.outside == 1)
            assert backends.is_full
            backends.released(backends.all[0], "peer", None)
            await until(lambda: backends.outside == 2)
            pages["/slots"] = [{"is_processing": False}] * 2
            await until(lambda: backends.outside == 0)
            changes = len(watched.changes)
            pages["/props"] = {"total_slots": 3}
            await until(lambda: backends.capacity == 3)
            assert len(watched.changes) > changes
            pages |= {"/props": {}, "/slots": {}}
            await until(lambda: backends.capacity == 0)


async def test_a_blip_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that ended while its server answered is not one of others."""
    monkeypatch.setattr(module, "EVERY_S", 3600.0)
    monkeypatch.setattr(module, "BUSY_EVERY_S", 3600.0)
    pages = dict(SLOTS)
    with serving(pages, headers={"Server": "llama.cpp"}) as port:
        async with watching(f"http://127.0.0.1:{port}") as watched:
            known = watched.models._known[watched.exit.backend]
            for busy, said in ((True, 0), (False, 0), (True, 0), (True, 2)):
                pages["/slots"] = [{"is_processing": busy}] * 2
                await watched.models._look_at(known)
                assert watched.exit.backends.outside == said


@pytest.mark.parametrize("odd", [-1, 2**64, 1e308, float("nan"), "9", None, [], {}, True])
async def test_whatever_a_server_says_of_its_slots(odd: Any) -> None:
    pages = {**SLOTS, "/props": {"total_slots": odd}, "/slots": odd}
    with serving(pages, headers={"Server": "llama.cpp"}) as port:
        async with watching(f"http://127.0.0.1:{port}", capacity="auto") as watched:
            assert 0 <= watched.exit.backends.capacity <= MAX_SLOTS
            assert watched.models.catalogs()["default"].models[0].slots <= MAX_SLOTS


async def test_which_services_speak_http() -> None:
    pages: dict[str, Any] = {"/": "a web server"}
    with serving(OLLAMA) as ollama, serving(pages) as web, Listener() as other:
        backends = (
            f"a=http://127.0.0.1:{web}", f"b=127.0.0.1:{web}", f"c=tcp://127.0.0.1:{ollama}", f"d=127.0.0.1:{other.port}",
            f"e=127.0.0.1:{ollama}",
        )  # fmt: skip
        async with watching(*backends, health_path="/") as watched:
            await until(lambda: watched.models.http == ("a", "e"))  # a web server is no model server; a person's word is
            pages |= {"/v1/models": {"data": []}}
            await until(lambda: watched.models.http == ("a", "b", "e"))
            assert len(watched.changes) >= 2
