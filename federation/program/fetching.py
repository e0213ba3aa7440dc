"""Fetches a release's files: from a folder of this machine, or by HTTP from the address that they lie at."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING

from federation.errors import NotDone, UsageError
from federation.program.archive import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S = 30.0  # without a byte
MAX_ARCHIVE_BYTES = 1024**3
# Where distributions keep their certificates; a program with its own Python looks where its builder's had them.
_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class Source:
    """`text`: an http(s) address, or a folder."""

    def __init__(self, text: str) -> None:
        parts = urllib.parse.urlsplit(text)
        if parts.scheme in ("http", "https"):
            if "@" in parts.netloc:
                raise UsageError("a user and a password in an address are not sent; get the archive, then --from FILE")
            if not parts.hostname or parts.query or parts.fragment:
                raise UsageError(f"{text!r} is not the address of a folder: https://HOST/PATH")
            self._base = text.rstrip("/") + "/"
        elif "://" in text:
            raise UsageError(f"{text!r}: archives come by http or https, or from a file or folder")
        else:
            self._base = ""
            self._folder = Path(text).expanduser().absolute()
        self.text = self._base.rstrip("/") or str(self._folder)

    @property
    def is_authentic(self) -> bool:
        """Whether nobody in between could have changed what comes from here."""
        return not self._base.startswith("http://")

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; None if it is not there. Raises NotDone."""
        try:
            with self._open(name) as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(name, error) from None
        if len(data) > limit:
            raise NotDone(f"{self.text}: {name} has more than {limit} bytes, so it is not what it should be")
        return data

    def copy(self, name: str, to: IO[bytes], progress: Callable[[int], None] = lambda _done: None) -> None:
        """A large file. Raises NotDone; OSError where `to` cannot be written."""
        done = 0
        try:
            file = self._open(name)
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(name, error) from None
        with file:
            while True:
                try:
                    chunk = file.read(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise self._failed(name, error) from None
                if not chunk:
                    return
                done += len(chunk)
                if done > MAX_ARCHIVE_BYTES:
                    raise NotDone(f"{self.text}: {name} has more than {MAX_ARCHIVE_BYTES // 1024**2} MiB")
                to.write(chunk)
                progress(done)

    def _open(self, name: str) -> IO[bytes]:
        if not self._base:
            return (self._folder / name).open("rb")
        request = urllib.request.Request(self._base + urllib.parse.quote(name), headers={"User-Agent": "federation"})
        opener = urllib.request.build_opener(_NoWayDown, urllib.request.HTTPSHandler(context=_context()))
        try:
            answer: IO[bytes] = opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.NOT_FOUND:
                raise FileNotFoundError(2, "not found there") from None
            raise
        return answer

    def _failed(self, name: str, error: Exception) -> NotDone:
        reason = error.reason if isinstance(error, urllib.error.URLError) and not hasattr(error, "code") else error
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return NotDone(f"cannot get {name} from {self.text}: {said}")


class _NoWayDown(urllib.request.HTTPRedirectHandler):
    """Follows no redirection from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise urllib.error.URLError("it leads on to an address without TLS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def untrusting_context() -> ssl.SSLContext:
    """TLS that believes nobody: for what is checked by other means."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        for path in filter(Path.is_file, map(Path, _AUTHORITIES)):
            context.load_verify_locations(path)
            break
    return context
