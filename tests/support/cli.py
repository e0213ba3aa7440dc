"""Helpers for tests: the API of a node that is not there, for the command line."""

from __future__ import annotations

from typing import Any

from tests.support.local_server import Handler


class Api:
    """A node's API: answers with what is next in line for a request, the last one for ever; keeps the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.seen: list[tuple[str, Any]] = []
        self.refuses = False
        self.ends_with_leave = False
        api = self

        class Answers(Handler):
            def reply(self, body: Any) -> tuple[int, Any]:
                asked = f"{self.command} {self.path.removeprefix('/api/v1/')}"
                api.seen.append((asked, body))
                if api.refuses:
                    return 401, {"error": "no\x1b key"}
                if asked == "POST leave" and api.ends_with_leave:
                    del api.answers["GET status"]
                line = api.answers.get(asked)
                if not line:
                    return 404, {"error": "There is no such thing here"}
                return 200, line.pop(0) if len(line) > 1 else line[0]

        self.handler = Answers

    @property
    def asked(self) -> list[str]:
        return [asked for asked, _ in self.seen]
