"""One HTTP POST to an address that a person gave: ntfy, Slack, Discord, or whatever takes JSON. h11, as the API's server has
it, over trio's TCP and TLS; certificates and names are verified. No redirect is followed, and no proxy asked.

The address may be a secret: it is in no text of an error, nor in a repr.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import trio

from federation import __version__
from federation.errors import FederationError

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 10.0  # for all of it
MAX_ANSWER_BYTES = 64 * 1024  # of an answer's head; the body is not read
NTFY_HOSTS = ("ntfy.sh",)
SLACK_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")
DISCORD_HOSTS = ("discord.com", "discordapp.com", "ptb.discord.com", "canary.discord.com")


class NotDelivered(FederationError):
    """A notice did not arrive"""

    detail_says_all = True


@dataclass(frozen=True, slots=True)
class Message:
    """`facts`: for programs, in JSON."""

    title: str
    text: str
    is_bad: bool
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Address:
    """An address as units.parse_webhook lets it pass."""

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)
    credentials: str = field(repr=False)  # "user:password", or empty
    kind: str

    @classmethod
    def of(cls, text: str) -> Address:
        parts = urlsplit(text)
        is_ntfy, scheme = parts.scheme.startswith("ntfy+"), parts.scheme.removeprefix("ntfy+")
        host = parts.hostname or ""
        name = host.rstrip(".")
        kind = "ntfy" if is_ntfy or name in NTFY_HOSTS or name.startswith("ntfy.") else "json"
        kind = "slack" if name in SLACK_HOSTS else "discord" if name in DISCORD_HOSTS else kind
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        who = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username is not None else ""
        return cls(scheme, host, parts.port or (443 if scheme == "https" else 80), target, who, kind)

    @property
    def shown(self) -> str:
        """For people: without the part that may be a secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.scheme == "https" else 80)
        return f"{self.scheme}://{host}{'' if usual else f':{self.port}'}/…"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.scheme == "https" else 80)
        return host if usual else f"{host}:{self.port}"


def request(address: Address, message: Message) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body, as that kind of receiver wants them."""
    headers = [("Host", address.authority), ("User-Agent", f"federation/{__version__}"), ("Connection", "close")]
    if address.credentials:
        headers.append(("Authorization", f"Basic {base64.b64encode(address.credentials.encode()).decode()}"))
    if address.kind == "ntfy":
        title = base64.b64encode(message.title.encode()).decode()  # RFC 2047: a header has no other way for UTF-8
        headers += [("Title", f"=?UTF-8?B?{title}?="), ("Priority", "4" if message.is_bad else "3")]
        headers += [("Tags", "rotating_light" if message.is_bad else "white_check_mark")]
        body, media_type = message.text.encode(), "text/plain; charset=utf-8"
    else:
        both = f"{message.title}\n{message.text}" if message.text else message.title
        fields: dict[str, Any] = {"title": message.title, "message": message.text, "text": both, **message.facts}
        if address.kind == "slack":  # & < > are its markup: a machine's name shall not call everybody
            fields = {"text": both.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
        elif address.kind == "discord":
            fields = {"content": both[:2000], "allowed_mentions": {"parse": []}}
        body, media_type = json.dumps(fields).encode(), "application/json"
    return [*headers, ("Content-Type", media_type), ("Content-Length", str(len(body)))], body


async def post(address: Address, message: Message, *, tls: ssl.SSLContext | None = None) -> None:
    """Send it. Raises NotDelivered unless the receiver says that it has it. `tls`: the system's certificates if None."""
    headers, body = request(address, message)
    try:
        with trio.fail_after(TIMEOUT_S):
            status = await _exchange(address, headers, body, tls)
    except trio.TooSlowError:
        raise NotDelivered(f"{address.shown} did not answer within {TIMEOUT_S:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise NotDelivered(f"{address.shown}: its certificate is not valid ({error.verify_message})") from None
    except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
        raise NotDelivered(f"{address.shown} was not reached: {_why(error)}") from None
    except ValueError:  # or a name that is none (idna)
        raise NotDelivered(f"{address.shown} does not answer in HTTP") from None
    if not 200 <= status < 300:
        more = "; give the address that it leads to" if 300 <= status < 400 else ""
        raise NotDelivered(f"{address.shown} answered {status}{more}")


async def _exchange(address: Address, headers: list[tuple[str, str]], body: bytes, tls: ssl.SSLContext | None) -> int:
    import h11  # with the first message: a node that tells nobody does without

    stream: trio.abc.Stream = await trio.open_tcp_stream(address.host, address.port)
    try:
        if address.scheme == "https":
            stream = trio.SSLStream(
                stream, tls or ssl.create_default_context(), server_hostname=address.host, https_compatible=True
            )
            await stream.do_handshake()
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_BYTES)
        parts = [connection.send(h11.Request(method="POST", target=address.target, headers=headers))]
        parts += [connection.send(h11.Data(data=body)), connection.send(h11.EndOfMessage())]
        await stream.send_all(b"".join(part for part in parts if part))
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(16 * 1024))
            elif isinstance(event, h11.Response):
                return int(event.status_code)
            elif not isinstance(event, h11.InformationalResponse):
                raise ValueError("it ended without an answer")
    except h11.ProtocolError as error:
        raise ValueError(str(error)) from None
    finally:
        await trio.aclose_forcefully(stream)


def _why(error: BaseException) -> str:
    cause = error.__cause__ or error
    cause = next(iter(getattr(cause, "exceptions", ())), cause)  # a group: of one dial to each address of the name
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not valid ({cause.verify_message})"
    if isinstance(cause, OSError) and cause.strerror:  # trio's own text repeats the address
        return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
    return type(cause).__name__
