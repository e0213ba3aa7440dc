"""One line of shell that installs this version on another machine, from a member's control port, and joins it.

The line has an invite's code (mesh/invite_codes.py) for one machine, and it pins the hash of the script that it runs; the
script pins the hash of the archive. So the control port may speak plain HTTP, and whoever is in between can change nothing
and learns no secret:

    line    fetches the script, checks its hash, and runs it with the code on standard input
    script  fetches the archive, checks its hash, installs it, and passes the code on to `federation service install`,
            which exchanges it for the token over the p2p port
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from federation.program.archive import Name

PATH = "/handover"
FOLDER = "handover"  # in the state directory: the archive that is handed over
SPENT = "federation: that node does not answer, or knows this line no more; make another there: federation invite --install"
MAX_DOWNLOADS = 8  # of one line: one that breaks may be tried again


@dataclass
class Handed:
    """The files that one line fetches. `script`: the installer's bytes. `invite`: the id of the invite of its code."""

    archive: Path
    script: bytes
    invite: bytes
    downloads: int = 0
    running: int = 0  # of them


def line(url: str, text: bytes, code: str) -> str:
    """For sh, bash and zsh. `url`: where script and archive are; `text`: the script; `code`: an argument of a shell's own
    command alone, so that no process list shows it."""
    is_tls = url.startswith("https://")  # the hash vouches for what comes, the certificate need not
    curl, wget = ("curl -fsSko", "wget --no-check-certificate -qO") if is_tls else ("curl -fsSo", "wget -qO")
    return (
        f'u={url}/install.sh; f=$(mktemp) && {{ {curl} "$f" $u || {wget} "$f" $u || {{ echo "{SPENT}" >&2; false; }}; }} && '
        f'echo "{hashlib.sha256(text).hexdigest()}  $f" | sha256sum -c - && echo \'{code}\' | sh "$f"'
    )


def script(url: str, name: Name, sha256: str) -> bytes:
    is_tls = url.startswith("https://")
    values = {
        "url": url, "folder": name.folder, "system": name.system, "arch": name.arch, "version": name.version,
        "sha256": sha256, "curl": "-k" if is_tls else "", "wget": "--no-check-certificate" if is_tls else "",
    }  # fmt: skip
    return _SCRIPT.substitute(values).encode()


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
