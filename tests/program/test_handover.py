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

from federation.program import handover
from federation.program.archive import Name
from tests.support.releases import release

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = Name("0.9.0", "linux", "x86_64")
CODE = "fed100_code"


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
def test_the_line_installs_and_joins(member: str, tmp_path: Path, tools: dict[str, str], shell: str) -> None:
    archive = release(tmp_path / "r", "0.9.0", broken=True)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    place = f"/handover/{'ab' * 16}"
    script = handover.script(f"{member}{place}", Name.here("0.9.0"), sha256)
    line = handover.line(f"{member}{place}", script, CODE)
    program = tmp_path / ".local/bin/federation"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN)
    program.chmod(0o755)

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([shell, "-c", text], env=tools, capture_output=True, text=True, check=False, timeout=120)

    done = run(line)  # nothing there yet
    assert (done.returncode != 0, handover.SPENT in done.stderr) == (True, True)
    Member.files[f"{place}/install.sh"] = script.replace(b"tar", b"rat")
    done = run(line)  # changed on the way: it is not run
    assert (done.returncode != 0, handover.SPENT in done.stderr) == (True, False)
    assert not (tmp_path / "ran").exists()
    Member.files[f"{place}/install.sh"] = script
    Member.files[f"{place}/archive"] = archive.read_bytes()[:-1]
    done = run(line)
    assert (done.returncode, "somebody changed it on the way" in done.stderr) == (1, True)
    Member.files[f"{place}/archive"] = archive.read_bytes()
    done = run(f"{line} --name 'a b'")
    assert (tmp_path / "ran").read_text() == f"join --token-file - --name a b\n{CODE}\n", done.stderr
    assert "runs in the foreground" in done.stderr
    left = [path.name for path in (tmp_path / "tmp").iterdir() if path.is_dir() or path.stat().st_size]
    assert len(left) <= 1  # the script that was changed on the way, at most


def test_by_tls_the_hash_vouches() -> None:
    line = handover.line("https://10.0.0.5:8485/handover/x", b"#!/bin/sh", CODE)
    assert "curl -fsSko" in line
    assert "wget --no-check-certificate" in line
    text = handover.script("https://h:1/handover/x", NAME, "ab" * 32).decode()
    assert "curl -fsS -k -o" in text


def test_the_code_is_on_the_standard_input_of_the_script_alone() -> None:
    url = "http://10.0.0.5:8485/handover/x"
    script = handover.script(url, NAME, "ab" * 32)
    line = handover.line(url, script, CODE)
    assert (line.count(CODE), line.endswith(f"echo '{CODE}' | sh \"$f\"")) == (1, True)
    assert CODE.encode() not in script


def test_the_script_leaves_nothing_unfilled() -> None:
    text = handover.script("http://h:1/handover/x", NAME, "ab" * 32).decode()
    assert not re.findall(r"\$(?:url|folder|system|arch|version|sha256|curl|wget)\b", text)
    assert "$$" not in text
    checked = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
