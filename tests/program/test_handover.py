from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from federation.errors import NotDone, TokenMalformed
from federation.program import handover
from federation.program.archive import Name
from federation.program.handover import Code, Handovers
from federation.units import without_tokens
from tests.support.releases import release

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = Name("0.9.0", "linux", "x86_64")
BASE = "http://10.0.0.5:8485"
TOKEN = "fed3_token"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handovers(clock: Clock) -> Handovers:
    return Handovers(clock)


def new(handovers: Handovers) -> tuple[Code, str]:
    return handovers.new(BASE, NAME, Path("/a"), "ab" * 32)


def names(code: Code) -> tuple[str, str]:
    return code.archive_url.rpartition("/")[2], code.token_url.split("/")[-2]


def test_a_code_opens_archive_and_token_once(handovers: Handovers) -> None:
    code, _ = new(handovers)
    archive, token = names(code)
    handed = handovers.archive(archive)
    assert handed is not None
    assert handed.sha256 == "ab" * 32
    assert handovers.archive(token) is None
    assert handovers.take(archive, TOKEN) is None  # seen on the way, it takes no token
    sealed = handovers.take(token, TOKEN)
    assert sealed is not None
    assert TOKEN.encode() not in sealed
    assert handover.unseal(code.secret, sealed) == TOKEN
    assert handovers.take(token, TOKEN) is handovers.archive(archive) is None


def test_it_is_good_for_an_hour(handovers: Handovers, clock: Clock) -> None:
    archive, token = names(new(handovers)[0])
    clock.now = handover.LIFETIME_S
    assert handovers.archive(archive) is not None
    clock.now += 1
    assert handovers.archive(archive) is handovers.take(token, TOKEN) is None


def test_there_are_few(handovers: Handovers) -> None:
    codes = [new(handovers)[0] for _ in range(handover.MAX_CODES + 1)]
    assert [handovers.archive(names(code)[0]) is not None for code in codes] == [False] + [True] * handover.MAX_CODES


def test_the_code_itself_is_in_no_name_no_log_and_no_repr(handovers: Handovers) -> None:
    code, line = new(handovers)
    secret = code.text.removeprefix(handover.MARK).partition("@")[0]
    assert Code.parse(code.text) == code
    assert secret not in code.archive_url + code.token_url + repr(code) + repr(handovers.archive(names(code)[0]))
    assert line.count(secret) == 1  # on the standard input of the script
    assert secret.encode() not in handovers.archive(names(code)[0]).script  # type: ignore[union-attr]
    assert secret not in without_tokens(f"federation: {code.text} is wrong")


@pytest.mark.parametrize(
    "text", ["fedh1_", "fedh1_x@http://h:1", f"fedh1_{'a' * 43}", f"fedh1_{'a' * 43}@ftp://h:1", "fedh1_!"]
)
def test_a_damaged_code_says_so(text: str) -> None:
    assert handover.is_code(text)
    with pytest.raises(TokenMalformed, match="damaged on the way"):
        Code.parse(text)
    assert not handover.is_code(TOKEN)


def test_what_another_sealed_is_not_believed() -> None:
    sealed = handover.seal(b"a" * 32, TOKEN)
    for data in (sealed, sealed[:20], b"", handover.seal(b"b" * 32, TOKEN)[:-1]):
        with pytest.raises(NotDone, match="is not the member that made it"):
            handover.unseal(b"b" * 32, data)


class Member(BaseHTTPRequestHandler):
    """A member's control port, with what the test put there."""

    files: dict[str, bytes] = {}  # noqa: RUF012  the test's own, cleared by the fixture

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def member() -> Iterator[str]:
    Member.files.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Member)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_newcomer_s_side(member: str) -> None:
    code = Code(b"s" * 32, member)
    with pytest.raises(NotDone, match="does not take this code: it was used before"):
        handover.exchange(code.text)
    Member.files[code.token_url.removeprefix(member)] = handover.seal(code.secret, TOKEN)
    assert handover.exchange(f" {code.text}\n") == TOKEN
    with pytest.raises(NotDone, match=r"127.0.0.1:1 is not reached: Connection refused"):
        handover.exchange(Code(b"s" * 32, "http://127.0.0.1:1").text)


# The line, in a real shell

STAND_IN = """\
#!/bin/sh
echo "$*" >> "$HOME/ran"
if [ "$1" = join ]; then cat >> "$HOME/ran"; fi
"""


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """A machine of its own, as far as a user sees: a home, and no systemd of the user's."""
    (tmp_path / "bin").mkdir()
    for name, text in (("systemctl", "#!/bin/sh\nexit 1\n"), ("id", "#!/bin/sh\necho 1000\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "tmp").mkdir()
    return {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "TMPDIR": str(tmp_path / "tmp")}


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("sha256sum"), reason="needs curl and sha256sum")
@pytest.mark.parametrize("shell", [path for name in ("sh", "bash", "zsh") if (path := shutil.which(name))])
def test_the_line_installs_and_joins(member: str, tmp_path: Path, tools: dict[str, str], shell: str, clock: Clock) -> None:
    archive = release(tmp_path / "r", "0.9.0", broken=True)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    handovers = Handovers(clock)
    code, line = handovers.new(member, Name.here("0.9.0"), archive, sha256)
    place = code.archive_url.removeprefix(member)
    handed = handovers.archive(place.rpartition("/")[2])
    assert handed is not None
    program = tmp_path / ".local/bin/federation"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN)
    program.chmod(0o755)

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([shell, "-c", text], env=tools, capture_output=True, text=True, check=False, timeout=120)

    assert run(line).returncode != 0  # nothing there yet
    Member.files[f"{place}/install.sh"] = handed.script.replace(b"tar", b"rat")
    assert run(line).returncode != 0  # changed on the way: it is not run
    assert not (tmp_path / "ran").exists()
    Member.files[f"{place}/install.sh"] = handed.script
    Member.files[f"{place}/archive"] = archive.read_bytes()[:-1]
    done = run(line)
    assert (done.returncode, "somebody changed it on the way" in done.stderr) == (1, True)
    Member.files[f"{place}/archive"] = archive.read_bytes()
    done = run(f"{line} --name 'a b'")
    assert (tmp_path / "ran").read_text() == f"join --token-file - --name a b\n{code.text}\n", done.stderr
    assert "runs in the foreground" in done.stderr
    left = [path.name for path in (tmp_path / "tmp").iterdir() if path.is_dir() or path.stat().st_size]
    assert len(left) <= 1  # the script that was changed on the way, at most


def test_by_tls_the_hash_vouches(handovers: Handovers) -> None:
    _, line = handovers.new("https://10.0.0.5:8485", NAME, Path("/a"), "ab" * 32)
    assert "curl -fsSko" in line
    assert "wget --no-check-certificate" in line
    text = handover.script("https://h:1/handover/x", NAME, "ab" * 32).decode()
    assert "curl -fsS -k -o" in text


def test_the_script_leaves_nothing_unfilled() -> None:
    text = handover.script("http://h:1/handover/x", NAME, "ab" * 32).decode()
    assert not re.findall(r"\$(?:url|folder|system|arch|version|sha256|curl|wget)\b", text)
    assert "$$" not in text
    checked = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
