"""The target of a request tells where the model's name and the conversation are. No I/O.

    POST /v1/chat/completions                   model in the body; a chat
    POST /v1/messages                           model in the body; a chat
    POST /api/generate                          model in the body, or its former key `name`; a bare prompt
    POST /api/copy                              its key is `source`
    GET  /v1/models/org/name%3Aq4               model in the path, with slashes
    POST /v1/engines/org/name/completions       model in the path; a bare prompt
    POST /openai/deployments/name/chat/completions?api-version=1      the same
    POST /v1beta/models/name:generateContent    model in the path
    GET  /v1/realtime?model=name                model in the query
    GET  /v1/responses/resp_1                   no model: an id, which lives where it was made

People write base URLs with one prefix too many, and libraries add theirs: /v1/v1/..., /api/api/..., /ollama/api/...,
/v1/api/chat. `target` is then the one that backends serve, and is what goes to them. The rest of a target stays as it came.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

MAX_COMMON = 200  # characters of a target that is understood once
MAX_NAME = 512  # characters of a model's name; a record takes 200 bytes


class Shape(Enum):
    """Where a body has its conversation."""

    NONE = "none"
    CHAT = "messages"
    RESPONSES = "input"
    PROMPT = "prompt"


class Path(NamedTuple):
    target: str
    shape: Shape = Shape.NONE
    model: str = ""  # named in the path
    query_model: str = ""
    keys: tuple[str, ...] = ("model",)  # of the body, the first that is there names the model; () if the body never does
    id: str = ""  # of a thing that lives on the node that made it: "responses/resp_1"


_PULLING = frozenset(("pull", "create"))  # what /api/... has for a model that need not be there
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_OLLAMA_NAMES = (
    "generate|chat|embed|embeddings|show|pull|push|delete|create|copy|tags|ps|version|blobs/[^/]*|me|signout"  # of /api/...
)
_WRONG = tuple(
    (re.compile(pattern), right)
    for pattern, right in (
        (r"/+(?=/)", ""),
        (r"/ollama(?=/(?:api|v1)(?:/|$))", ""),
        (r"(?:/v1)+(?=/v1(?:/|$))", ""),
        (r"(?:/api)+(?=/api(?:/|$))", ""),
        (rf"(?:/v1)+(?=/api/(?:{_OLLAMA_NAMES})/?$)", ""),
        (
            r"/api(?=/v1/(?:chat/completions|completions|embeddings|messages|responses)/?$)",
            "",
        ),  # /api/v1/chat is LM Studio's
    )
)

_CHATS = frozenset({"chat/completions"})
_PROMPTS = frozenset({"completions", "completion"})
_TAIL = r"(?:/(chat/completions|completions|embeddings|edits|images/[a-z]+|audio/[a-z]+|responses|rerank))?"
_IN_PATH = (
    re.compile(rf"(?:/v1)?/engines/(.+?){_TAIL}"),
    re.compile(rf"(?:/v1)?/openai/deployments/(.+?){_TAIL}"),
    re.compile(r"/v1(?:beta|alpha)?/models/(.+?)(?::([A-Za-z]+Content|countTokens|embedContent|predict))"),
)
_ONE_MODEL = re.compile(r"(?:/v1|/v1beta|/api/v0)/models/(.+)|/models/(.+)")
# LocalAI's and llama.cpp's own below /models
_NO_MODEL = re.compile(
    r"/models/(?:apply|available|galleries|load|unload|edit|import|reload|toggle|(?:delete|jobs)(?:/.*)?)"
)
_MAKING = (
    "responses|files|batches|threads|assistants|conversations|vector_stores|fine_tuning/jobs|messages/batches|videos"
    "|containers|uploads|evals"
)
_ID = re.compile(rf"(?:/v1)?/({_MAKING}|chat/completions)/([^/]+)(?:/.*)?")
_MADE = re.compile(rf"(?:/v1)?/({_MAKING})/?(?:\?.*)?")
_NOT_IDS = {
    "count_tokens",
    "batches",
    "input_tokens",
    "compact",
    "search",
    "render",
    "runs",
}  # verbs that stand where ids do
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})
_OLLAMA_KEYS = {"copy": ("source",), "tags": (), "ps": (), "version": ()}
_ELEVENLABS = re.compile(r"/v1/(?:text-to-speech/[^/]+|sound-generation)")


def read(method: str, target: str) -> Path:
    """Understand a request's target; any text will do."""
    return _read_again(method, target) if len(target) <= MAX_COMMON else _read(method, target)


def made_by(method: str, target: str) -> str:
    """The kind of thing that the request makes, as in `Path.id`; empty if none. `target`: as backends get it."""
    found = _MADE.fullmatch(target) if method == "POST" else None
    return found[1] if found is not None else ""


def _read(method: str, target: str) -> Path:
    path, mark, query = target.partition("?")
    if (authority := _AUTHORITY.match(path)) is not None:
        path = path[authority.end() :]
    if not path.startswith("/"):  # "*", or nothing that we know
        return Path(target, keys=())
    for pattern, right in _WRONG:
        path = _collapse(pattern, right, path)
    plain = path.rstrip("/") or "/"
    if not _IN_MODELS.match(plain):
        path = plain
    return _known(method, plain)._replace(target=path + mark + query, query_model=_query_model(query))


# A network's clients use a handful of targets; an exotic one costs 10 us again.
_read_again = lru_cache(maxsize=256)(_read)

_IN_MODELS = re.compile(r"(?:/v1)?/models/")


def _collapse(pattern: re.Pattern[str], right: str, path: str) -> str:
    found = pattern.match(path)
    return right + path[found.end() :] if found else path


def _known(method: str, plain: str) -> Path:
    keys: tuple[str, ...] = () if method in _BODILESS else ("model",)
    if plain.startswith("/api/"):
        what = plain[5:]
        if what in _PULLING or what.startswith("blobs/"):
            return Path("", keys=())
        if re.fullmatch(_OLLAMA_NAMES, what):
            shape = {"generate": Shape.PROMPT, "chat": Shape.CHAT}.get(what, Shape.NONE)
            return Path("", shape, keys=keys and _OLLAMA_KEYS.get(what, ("model", "name")))
    for pattern in _IN_PATH:
        if (found := pattern.fullmatch(plain)) is not None:
            return Path("", shape=_shape(found[2] or "") if keys else Shape.NONE, model=_name(found[1]), keys=())
    if not _NO_MODEL.fullmatch(plain) and (found := _ONE_MODEL.fullmatch(plain)) is not None:
        return Path("", model=_name(found[1] or found[2]), keys=())
    what = plain.removeprefix("/v1").removeprefix("/")
    if (found := _ID.fullmatch(plain)) is not None and found[2] not in _NOT_IDS:
        return Path("", keys=(), id=f"{found[1]}/{unquote(found[2])}")
    if _ELEVENLABS.fullmatch(plain) and keys:
        keys = ("model_id", "model")
    return Path("", _shape(what) if keys else Shape.NONE, keys=keys)


def kind_of(method: str, target: str) -> str:
    """The kind of server that such a request without a model is for.

    Ollama's clients ask for its version, and by HEAD / whether it runs, before anything else; other servers answer 404. A
    model that is pulled or made is not there yet."""
    path = target.partition("?")[0]
    is_asking = (path == "/api/version" and method in ("GET", "HEAD")) or (path == "/" and method == "HEAD")
    is_making = method == "POST" and path.removeprefix("/api/") in _PULLING
    return "ollama" if is_asking or is_making else ""


def _shape(what: str) -> Shape:
    if what in _CHATS or what == "messages":
        return Shape.CHAT
    if what == "responses":
        return Shape.RESPONSES
    return Shape.PROMPT if what in _PROMPTS else Shape.NONE


def _name(quoted: str) -> str:
    """ "" if it is none: an entry then says that there is no such model."""
    name = unquote(quoted, errors="strict") if _is_utf8(quoted) else ""
    return name if len(name) <= MAX_NAME and name.isprintable() else ""


def _is_utf8(quoted: str) -> bool:
    try:
        unquote(quoted, errors="strict").encode()
    except ValueError:
        return False
    return True


def _query_model(query: str) -> str:
    """The last `model` of a query."""
    if "model=" not in query:
        return ""
    named = ""
    for pair in query.split("&", 64)[:64]:
        key, _, value = pair.partition("=")
        if key == "model":
            named = _name(value.replace("+", " "))
    return named


def ollama_name(name: str) -> str:
    """One spelling for all that Ollama takes for one name: no case, its own registry and `:latest` implied.

    "Llama3", "llama3:latest" and "registry.ollama.ai/library/llama3" are "llama3:latest".
    """
    name = name.lower().removeprefix("https://").removeprefix("http://")
    name = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
