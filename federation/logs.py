"""Logging: one handler on stderr for structlog and for every library that uses the standard library's logging.

Libraries log from WARNING on, in one line, without tracebacks: a remote that misbehaves is no fault of ours, and py-libp2p
logs a page of stack for each. (`--log-level debug` shows them.) Our own loggers keep tracebacks: these are bugs.

No secret gets into the log: the handler replaces values of keys that name a secret, and all texts that look like a token.
Texts from the network cannot forge lines or move the terminal's cursor.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import structlog

from federation.units import REDACTED, without_tokens

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

OURS = "federation"
EVENTS_KEPT = 1000  # for `federation logs`
CONNECTIONS_KEPT = 2000  # and one batch more; kept apart, since a busy minute would push out all other lines
QUIET = ("libp2p", "hypercorn", "zeroconf")  # these build no records that the handler would drop

_SECRET_KEY = re.compile(r"(.*[_-])?(token|secret|key|password|authorization)s?", re.IGNORECASE)
_MULTILINE_KEYS = {"exception", "stack"}  # our own tracebacks


def configure(level: str, style: str, *, stream: TextIO, colors: bool = False) -> None:
    """Send all logging to `stream` from `level` (debug, info, ...) on, as "console" or "json" lines.

    Call it before libp2p is imported (its import calls `basicConfig` and sets up a logger of its own).
    """
    threshold = logging.getLevelName(level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = _Handler(stream, as_json=style == "json")
    handler.addFilter(_Foreign(tracebacks=threshold <= logging.DEBUG))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                redact,
                _keep,
                _renderer(style, colors),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, threshold))
    # At its import libp2p takes its logger off the root (trap M); loggers without a handler of their own come here, too.
    logging.lastResort = handler
    logging.raiseExceptions = False  # a closed stderr is no reason to write to it
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    sys.unraisablehook = _failed_unseen
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def say_dropped(lines: int) -> None:
    """Say how many lines an Outlet dropped."""
    structlog.get_logger(__name__).warning("lines of this log were dropped, since nobody read them", lines=lines)


class Ended(Protocol):
    """Connections that ended, in their order. Each becomes a line or an event only on demand."""

    def __len__(self) -> int: ...
    def line(self, at: int) -> str:
        """The line of ConsoleRenderer, at a hundredth of its cost."""

    def event(self, at: int) -> dict[str, Any]:
        """A new event at each call."""


class Recent:
    """The newest lines of this process, for `federation logs`: each with a number that rises by one."""

    def __init__(self) -> None:
        self.last = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._ended: deque[tuple[int, Ended]] = deque()  # behind the number of its first
        self._connections = 0  # in all of them

    def add(self, event: dict[str, Any]) -> None:
        """Keep an event. The caller must not change it afterwards."""
        self.last += 1
        event["number"] = self.last
        self._events.append(event)

    def add_connections(self, ended: Ended) -> None:
        self._ended.append((self.last + 1, ended))
        self.last += len(ended)
        self._connections += len(ended)
        while self._connections - len(self._ended[0][1]) >= CONNECTIONS_KEPT:
            self._connections -= len(self._ended.popleft()[1])

    def after(self, number: int, newest: int) -> list[dict[str, Any]]:
        """Lines with higher numbers, in order: the `newest` of them at most."""
        lines = [event for event in self._events if event["number"] > number]
        wanted = newest
        for first, ended in reversed(self._ended):
            start = max(0, number + 1 - first, len(ended) - wanted)
            lines += [{**ended.event(at), "number": first + at} for at in range(start, len(ended))]
            wanted -= len(ended) - start
            if wanted <= 0 or first <= number:
                break
        lines.sort(key=lambda line: line["number"])
        return lines[-newest:]


recent = Recent()  # one for the process, like logging itself


def write_connections(ended: Ended) -> None:
    """Log the ends of many connections with one write."""
    root = logging.getLogger()
    if root.isEnabledFor(logging.INFO):
        for handler in root.handlers:
            if isinstance(handler, _Handler):
                handler.write_connections(ended)
    recent.add_connections(ended)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # no generic at run time before 3.11
    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        super().__init__(stream)
        self._as_json = as_json

    def write_connections(self, ended: Ended) -> None:
        self.acquire()
        try:
            each = range(len(ended))
            lines = [json.dumps(ended.event(at)) for at in each] if self._as_json else [ended.line(at) for at in each]
            self.stream.write("\n".join([*lines, ""]))
            self.stream.flush()
        except (OSError, ValueError):  # closed: no reason to end, as for every other line
            pass
        finally:
            self.release()


def harmless(text: str) -> str:
    """A text that remotes may have written, without secrets and control characters."""
    return _printable(without_tokens(text))


def _keep(_logger: Any, _method: str, event: EventDict) -> EventDict:
    recent.add(dict(event))
    return event


def redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Structlog processor: no secrets, no control characters."""
    return {key: _clean(value, key) for key, value in event.items()}


def _clean(value: Any, key: str = "") -> Any:
    if _SECRET_KEY.fullmatch(key):
        return REDACTED
    if isinstance(value, str):
        return _printable(without_tokens(value), lines=key in _MULTILINE_KEYS)
    if isinstance(value, dict):
        return {name: _clean(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return harmless(str(value))  # errors, paths, addresses


def _printable(text: str, *, lines: bool = False) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else c.encode("unicode_escape").decode() for c in text)


def _renderer(style: str, colors: bool) -> Processor:
    if style == "json":
        return structlog.processors.JSONRenderer(sort_keys=False)
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "?"
    error = args.exc_value or args.exc_type()
    _python.error("thread %s failed: %r", name, error, exc_info=error)


def _failed_unseen(args: sys.UnraisableHookArgs) -> None:
    _python.error("failed while being cleaned up: %r", args.exc_value, exc_info=args.exc_value)


_python = logging.getLogger("python")  # the interpreter would print these itself, page by page


class _Foreign(logging.Filter):
    """Makes libraries brief: from WARNING on, the first line only, and tracebacks only at level debug."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def _is_noise(self, record: logging.LogRecord) -> bool:
        """Whether a record is one of py-libp2p's errors about peers that come and go: net/ logs these in our words."""
        return not self._tracebacks and record.name.partition(".")[0] == "libp2p"

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == OURS or record.name.startswith(f"{OURS}."):
            return True
        if record.levelno < (logging.CRITICAL if self._is_noise(record) else logging.WARNING):
            return False
        if not self._tracebacks:
            record.exc_info = record.exc_text = record.stack_info = None
            record.msg, record.args = record.getMessage().partition("\n")[0], None
        return True
