"""One line of shell that installs this version on another machine, from a member's control port, and joins it.

The line has a one-time code, and it pins the hash of the script that it runs; the script pins the hash of the archive. So
the control port may speak plain HTTP, and whoever is in between can change nothing:

    line    fetches the script, checks its hash, and runs it with the code on standard input
    script  fetches the archive, checks its hash, installs it, and passes the code on to `federation service install`
    code    32 random bytes that never travel. Two names that are made from them do: one opens the archive, one the token,
            which comes encrypted with a key that is made from them, too (ChaCha20-Poly1305), once

`Handovers` is the member's side, `exchange` the newcomer's.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from string import Template
from typing import TYPE_CHECKING

from federation.errors import NotDone, TokenMalformed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation.program.archive import Name

MARK = "fedh1_"
PATH = "/handover"
FOLDER = "handover"  # in the state directory: the archive that is handed over
LIFETIME_S = 3600.0
MAX_CODES = 16  # of one owner; the oldest makes room
MAX_DOWNLOADS = 8  # of one code: a line that breaks may be tried again
MAX_SEALED_BYTES = 8192
NONCE_BYTES = 12
_CODE = re.compile(rf"{MARK}([A-Za-z0-9_-]{{43}})@(https?://[^\s/@]{{1,300}})/?")


@dataclass(frozen=True)
class Code:
    """`base`: the address of the member's control port."""

    secret: bytes = field(repr=False)
    base: str

    @classmethod
    def parse(cls, text: str) -> Code:
        match = _CODE.fullmatch(text.strip())
        if match is None:
            raise TokenMalformed("the code of an install line was damaged on the way; copy the whole line again")
        return cls(base64.urlsafe_b64decode(f"{match[1]}="), match[2])

    @property
    def text(self) -> str:
        return f"{MARK}{base64.urlsafe_b64encode(self.secret).decode().rstrip('=')}@{self.base}"

    @property
    def archive_url(self) -> str:
        return f"{self.base}{PATH}/{_name(self.secret, 'archive')}"

    @property
    def token_url(self) -> str:
        return f"{self.base}{PATH}/{_name(self.secret, 'token')}/token"


@dataclass
class Handed:
    """What one code opens. `script`: the installer's bytes."""

    secret: bytes = field(repr=False)
    archive: Path
    sha256: str
    script: bytes
    until: float
    downloads: int = 0
    running: int = 0  # of them


class Handovers:
    """The codes that are good now. `now`: seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._by_archive: dict[str, Handed] = {}

    def new(self, base: str, name: Name, archive: Path, sha256: str) -> tuple[Code, str]:
        """A code for one machine, and the line to run there."""
        code = Code(secrets.token_bytes(32), base)
        text = script(code.archive_url, name, sha256)
        handed = Handed(code.secret, archive, sha256, text, self._now() + LIFETIME_S)
        self._by_archive[_name(code.secret, "archive")] = handed
        while len(self._by_archive) > MAX_CODES:
            del self._by_archive[next(iter(self._by_archive))]
        return code, line(code, text)

    def archive(self, name: str) -> Handed | None:
        """What the name opens, if its code is good."""
        handed = self._by_archive.get(name)
        return handed if handed is not None and self._now() <= handed.until else None

    def take(self, name: str, token: str) -> bytes | None:
        """Spend a code: the token, encrypted. None if the name is of no good code."""
        for archive_name, handed in self._by_archive.items():
            if name == _name(handed.secret, "token") and self._now() <= handed.until:
                del self._by_archive[archive_name]
                return seal(handed.secret, token)
        return None


def is_code(text: str) -> bool:
    return text.strip().startswith(MARK)


def exchange(text: str) -> str:
    """The token for a code, from the member that made it. Raises TokenMalformed or NotDone."""
    import http.client  # a member's daemon imports this module, and asks nobody
    import urllib.error
    import urllib.request

    from federation.program.fetching import TIMEOUT_S, untrusting_context

    code = Code.parse(text)
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=untrusting_context())]
    where = code.base.partition("://")[2]
    try:
        with urllib.request.build_opener(*handlers).open(code.token_url, timeout=TIMEOUT_S) as answer:
            sealed = answer.read(MAX_SEALED_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        raise NotDone(
            f"{where} does not take this code: it was used before, or is older than an hour, or the node there was started "
            "anew; make another line there: federation invite --install"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise NotDone(f"{where} is not reached: {getattr(reason, 'strerror', None) or reason}") from None
    return unseal(code.secret, sealed)


def seal(secret: bytes, token: str) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(_derived(secret, "key")).encrypt(nonce, token.encode(), None)


def unseal(secret: bytes, sealed: bytes) -> str:
    """Raises NotDone for what the member with this code did not say."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        plain = ChaCha20Poly1305(_derived(secret, "key")).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        raise NotDone("what answers at the code's address is not the member that made it; nothing was joined") from None
    return plain.decode()


def line(code: Code, text: bytes) -> str:
    """For sh, bash and zsh. The code is an argument of a shell's own command alone: no process list shows it."""
    is_tls = code.base.startswith("https://")  # the hash vouches for what comes, the certificate need not
    curl, wget = ("curl -fsSko", "wget --no-check-certificate -qO") if is_tls else ("curl -fsSo", "wget -qO")
    return (
        f'u={code.archive_url}/install.sh; f=$(mktemp) && {{ {curl} "$f" $u || {wget} "$f" $u; }} && '
        f'echo "{hashlib.sha256(text).hexdigest()}  $f" | sha256sum -c - && echo \'{code.text}\' | sh "$f"'
    )


def script(url: str, name: Name, sha256: str) -> bytes:
    is_tls = url.startswith("https://")
    values = {
        "url": url, "folder": name.folder, "system": name.system, "arch": name.arch, "version": name.version,
        "sha256": sha256, "curl": "-k" if is_tls else "", "wget": "--no-check-certificate" if is_tls else "",
    }  # fmt: skip
    return _SCRIPT.substitute(values).encode()


def _name(secret: bytes, what: str) -> str:
    return _derived(secret, what)[:16].hex()


def _derived(secret: bytes, what: str) -> bytes:
    return hashlib.sha256(f"federation handover: {what}: ".encode() + secret).digest()


_SCRIPT = Template("""\
#!/bin/sh
# Made by `federation invite --install`: installs federation $version from that member, and joins its network.
# Standard input is the code of the line; options go to `federation join`.
set -eu
umask 022
fail() { echo "federation: $$*" >&2; exit 1; }
IFS= read -r code || fail "the code is missing: run the whole line"
[ "$$(uname -s | tr A-Z a-z) $$(uname -m)" = "$system $arch" ] ||
    fail "this version is for $system on $arch, and this machine is $$(uname -s) on $$(uname -m)"
for tool in tar gzip sha256sum mktemp; do
    command -v "$$tool" >/dev/null || fail "$$tool is missing; install it, and run the line again"
done
if [ "$$(id -u)" = 0 ]; then prefix=/usr/local; else prefix=$$HOME/.local; fi
work=$$(mktemp -d)
case $$0 in /*) self=$$0;; *) self=$$work;; esac
trap 'rm -rf "$$work" "$$self"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
archive=$$work/$folder.tar.gz
echo "federation: getting $version" >&2
{ curl -fsS $curl -o "$$archive" "$url/archive" || wget -q $wget -O "$$archive" "$url/archive"; } </dev/null ||
    fail "the archive does not come; make another line there: federation invite --install"
echo "$sha256  $$archive" | sha256sum -c - >/dev/null 2>&1 ||
    fail "the archive is damaged, or somebody changed it on the way"
tar -xzf "$$archive" -C "$$work" --no-same-owner
"$$work/$folder/federation" update --from "$$archive" --sha256 $sha256 --prefix "$$prefix" </dev/null ||
    [ -x "$$prefix/bin/federation" ] || exit 1
rm -rf "$$work" "$$self"
trap - EXIT
if [ "$$(id -u)" = 0 ]; then is_there=$$([ -d /run/systemd/system ] && echo yes || :)
else is_there=$$(systemctl --user show-environment >/dev/null 2>&1 && echo yes || :); fi
if [ "$$is_there" ]; then
    printf '%s\\n' "$$code" | "$$prefix/bin/federation" service install --token-file - "$$@"
else
    echo "federation: no systemd answers here, so the node runs in the foreground; Ctrl-C ends it" >&2
    printf '%s\\n' "$$code" | "$$prefix/bin/federation" join --token-file - "$$@"
fi
""")
