"""install.sh, with small archives whose program is a shell script. scripts/package-test has the real ones."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCRIPT = Path(__file__).parent.parent / "install.sh"
MACHINE = platform.machine()
DEADLINE_S = 120

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the archives are for Linux")


class Place:
    """A folder of archives, and a home to install into."""

    def __init__(self, tmp: Path) -> None:
        self.archives, self.home = tmp / "archives", tmp / "home"
        self.archives.mkdir()
        self.home.mkdir()
        self.prefix = self.home / ".local"
        self.lib, self.link = self.prefix / "lib/federation", self.prefix / "bin/federation"

    def add(self, version: str, machine: str = MACHINE, glibc: str = "2.17", program: str = "", listed: bool = True) -> Path:
        name = f"federation-{version}-linux-{machine}"
        folder = self.archives / name
        (folder / "share").mkdir(parents=True)
        (folder / "share/requires-glibc").write_text(f"{glibc}\n")
        (folder / "federation").write_text(program or f'#!/bin/sh\necho "federation {version}"\n')
        (folder / "federation").chmod(0o755)
        archive = self.archives / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, name)
        shutil.rmtree(folder)
        if listed:
            with (self.archives / "SHA256SUMS").open("a") as sums:
                sums.write(f"{sha256(archive)}  {archive.name}\n")
        return archive

    def run(self, *options: str | Path, script: Path = SCRIPT, path: str = "/usr/bin:/bin") -> tuple[int, str]:
        environment = {"HOME": str(self.home), "PATH": path, "LC_ALL": "C"}
        done = subprocess.run(
            ["/bin/sh", script, *options], env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert not done.stdout.startswith("install:"), "what the script says is for people: on stderr"
        return done.returncode, done.stdout + done.stderr

    def install(self, *options: str | Path) -> str:
        code, said = self.run("--from", self.archives, "--user", *options)
        assert code == 0, said
        return said

    def refused(self, *options: str | Path, code: int = 1, **more: str) -> str:
        """What it says, in one line; it left nothing behind that was not there."""
        before = listing(self.home)
        got, said = self.run("--user", *options, **more)  # type: ignore[arg-type]
        assert got == code, said
        lines = [line for line in said.splitlines() if not line.startswith("install: getting ")]
        assert len(lines) == 1, said
        assert listing(self.home) == before
        return lines[0].removeprefix("install: ")

    def version(self) -> str:
        done = subprocess.run([self.link, "version"], capture_output=True, text=True, check=True, timeout=DEADLINE_S)
        return done.stdout.strip()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_it_installs_the_newest_for_the_user(place: Place) -> None:
    for version in ("0.9.0", "0.10.0rc1", "0.10.0", "0.2.0"):
        archive = place.add(version)
        if version == "0.10.0":
            newest = archive
    said = place.install()
    assert place.version() == "federation 0.10.0"
    assert f"{place.prefix}/bin is not in your PATH" in said
    assert os.readlink(place.link) == "../lib/federation/current/federation"
    assert os.readlink(place.lib / "current") == "0.10.0"
    assert (place.lib / "0.10.0/share/sha256").read_text().strip() == sha256(newest)
    assert (place.lib / "source").read_text().strip() == str(place.archives), "where `federation update` looks"
    assert sorted(path.name for path in place.lib.iterdir()) == ["0.10.0", "current", "made", "source"]


def test_it_installs_with_a_prefix_beside_itself_and_then_runs_a_command(place: Place, tmp_path: Path) -> None:
    place.add("1.0", program='#!/bin/sh\n[ "$1" = version ] && echo federation 1.0 || echo "ran:$*"\n')
    shutil.copy(SCRIPT, place.archives / "install.sh")
    beside = place.archives / "install.sh"
    code, said = place.run(f"--prefix={tmp_path}/pre fix", "--", "join", "--name", "a b", script=beside)
    assert code == 0, said
    assert "ran:join --name a b" in said
    assert (tmp_path / "pre fix/bin/federation").is_file()
    assert not list((tmp_path / "pre fix/lib/federation").glob(".install*"))


def test_an_upgrade_keeps_the_version_before_and_those_that_run(place: Place) -> None:
    sleeper = Path(shutil.which("sleep") or "").resolve()
    place.add("1.0")
    place.install()
    running = place.lib / "1.0/sleep"
    shutil.copy(sleeper, running)
    process = subprocess.Popen([running, "600"])
    try:
        for version in ("1.1", "1.2", "1.3"):
            place.add(version)
            said = place.install()
            if version == "1.1":
                assert f"process {process.pid} goes on with 1.0" in said
        assert place.version() == "federation 1.3"
        assert os.readlink(place.lib / "previous") == "1.2"
        kept = {path.name for path in place.lib.iterdir() if path.is_dir() and not path.is_symlink()}
        assert kept == {"1.0", "1.2", "1.3"}, "1.1 is neither the one before nor does it run"
        assert "a node runs from" in place.refused("--uninstall")
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    assert "is installed already" in place.install()


def test_another_archive_of_the_same_version_replaces_it(place: Place) -> None:
    place.add("1.0")
    place.install()
    (place.archives / "SHA256SUMS").unlink()
    place.add("1.0", program='#!/bin/sh\n# mended\necho "federation 1.0"\n')
    place.install()
    assert "mended" in (place.lib / "1.0/federation").read_text()
    assert not (place.lib / "previous").is_symlink()


def test_uninstall_leaves_nothing_but_what_a_person_owns(place: Place) -> None:
    place.add("1.0")
    place.install()
    state = place.home / ".local/state/federation"
    state.mkdir(parents=True)
    (state / "token").write_text("kept")
    code, said = place.run("--user", "--uninstall")
    assert code == 0
    assert f"left: {state}" in said
    assert listing(place.home) == [".local", ".local/state", ".local/state/federation", ".local/state/federation/token"]
    place.install()
    code, said = place.run("--user", "--uninstall", "--purge")
    assert (code, listing(place.home)) == (0, []), said
    assert "is not installed in" in place.refused("--uninstall")


def test_uninstall_leaves_folders_that_were_there(place: Place) -> None:
    (place.prefix / "bin").mkdir(parents=True)
    place.add("1.0")
    place.install()
    assert place.run("--user", "--uninstall")[0] == 0
    assert listing(place.home) == [".local", ".local/bin"]


def test_a_wrong_hash_installs_nothing_and_an_old_version_stays(place: Place) -> None:
    archive = place.add("1.0")
    archive.write_bytes(archive.read_bytes() + b"x")
    said = place.refused("--from", place.archives)
    assert f"has the hash {sha256(archive)}" in said
    (place.archives / "SHA256SUMS").unlink()
    archive.unlink()
    place.add("1.0")
    place.install()
    place.add("1.1").write_bytes(b"nonsense")
    assert "nothing was installed" in place.refused("--from", place.archives)
    assert place.version() == "federation 1.0"


def test_a_pinned_hash_stands_above_the_list(place: Place) -> None:
    archive = place.add("1.0", listed=False)
    assert "the list of hashes" in place.refused("--from", archive)
    assert "should have" in place.refused("--from", archive, "--sha256", "0" * 64)
    code, said = place.run("--user", "--from", archive, "--sha256", sha256(archive).upper())
    assert code == 0, said


def test_the_script_that_is_built_knows_the_hashes(place: Place, tmp_path: Path) -> None:
    archive = place.add("1.0")
    pinned = tmp_path / "install.sh"
    pinned.write_text(SCRIPT.read_text().replace("PINNED=''\n", f"PINNED='{sha256(archive)}  {archive.name}\n'\n", 1))
    archive.write_bytes(b"other")
    (place.archives / "SHA256SUMS").write_text(f"{sha256(archive)}  {archive.name}\n")  # whoever changes one changes both
    assert "should have" in place.refused("--from", place.archives, script=pinned)  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_signed_list(place: Place) -> None:
    place.add("1.0")
    key = Ed25519PrivateKey.generate()
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    assert "has no SHA256SUMS.sig" in place.refused("--from", place.archives, "--key", public)
    (place.archives / "SHA256SUMS.sig").write_bytes(key.sign((place.archives / "SHA256SUMS").read_bytes()))
    other = base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    assert "is not signed with this key" in place.refused("--from", place.archives, "--key", other)
    assert "32 bytes in base64" in place.refused("--from", place.archives, "--key", "abc", code=2)
    (place.archives / "release.pub").write_text(public + "\n")
    place.install("--key", place.archives / "release.pub")
    place.add("1.1")  # the list is no longer what was signed
    assert "is not signed with this key" in place.refused("--from", place.archives, "--key", public)


def test_what_does_not_fit_this_machine(place: Place) -> None:
    place.add("1.0", machine="sparc64")
    assert f"no archive for {MACHINE}; there are: sparc64" in place.refused("--from", place.archives)
    place.add("1.1", glibc="9.99")
    assert "this version needs glibc 9.99, and this system has 2." in place.refused("--from", place.archives)
    place.add("1.2", program="#!/bin/sh\necho boom >&2; exit 3\n")
    assert "does not run here (boom)" in place.refused("--from", place.archives)
    place.add("1.3", program="#!/bin/sh\necho federation 9.9\n")
    assert "says 'federation 9.9'" in place.refused("--from", place.archives)
    assert "there is no version 7.0; there are: 1.1 1.2 1.3" in place.refused("--from", place.archives, "--version", "7.0")


def test_what_is_missing_on_this_machine(place: Place, tmp_path: Path) -> None:
    place.add("1.0")
    few = tmp_path / "bin"
    few.mkdir()
    tools = "sh uname id tr cut tail sed grep awk ls readlink mktemp tar gzip getconf rmdir mkdir dirname cat"
    for tool in tools.split():
        (few / tool).symlink_to(shutil.which(tool) or "")
    assert "sha256sum is missing" in place.refused("--from", place.archives, path=str(few))
    (few / "sha256sum").symlink_to("/usr/bin/sha256sum")
    assert "neither curl nor wget is here" in place.refused("--from", "https://127.0.0.1:1/x", path=str(few))
    (few / "tar").unlink()
    assert "tar is missing" in place.refused("--from", place.archives, path=str(few))


def test_an_address_that_nobody_vouches_for_is_not_taken(place: Place, tmp_path: Path) -> None:
    import http.server
    import threading
    from functools import partial

    archive = place.add("1.0")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(place.archives))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            assert "is not encrypted" in place.refused("--from", base)
            assert "cannot get" in place.refused("--from", f"{base}/nothing")
            code, said = place.run("--user", "--from", f"{base}/{archive.name}", "--sha256", sha256(archive))
            assert code == 0, said
            assert (place.lib / "source").read_text().strip() == base
        finally:
            server.shutdown()
            thread.join(DEADLINE_S)
    assert "cannot get" in place.refused("--from", base)


def test_what_is_there_already_and_not_ours_stays(place: Place) -> None:
    place.add("1.0")
    place.link.parent.mkdir(parents=True)
    place.link.write_text("#!/bin/sh\necho of somebody else\n")
    assert "is there already and not from this script" in place.refused("--from", place.archives)
    assert "somebody else" in place.link.read_text()


def test_a_place_that_may_not_be_written(place: Place) -> None:
    place.add("1.0")
    said = place.refused("--from", place.archives, "--prefix", "/proc/here")
    assert said.startswith("cannot write to /proc/here/lib/federation (No such file or directory)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nonsense"], "no such option: --nonsense"),
        (["--from"], "--from needs a value"),
        (["--sha256=abc"], "64 hexadecimal digits"),
        (["--from", "ftp://127.0.0.1"], "an address begins with http"),
        (["--purge"], "--purge goes with --uninstall"),
        (["--uninstall", "--", "join"], "--uninstall runs no command"),
        (["--version", "../../x"], "is no version"),
        (["--from", "/nowhere/other.tar.gz", f"--sha256={'0' * 64}"], "is no archive of federation"),
    ],
)
def test_wrong_options(place: Place, options: list[str], said: str) -> None:
    assert said in place.refused(*options, code=2)


def test_help_says_all_options(place: Place) -> None:
    code, said = place.run("--help")
    assert code == 0
    for option in ("--from", "--version", "--user", "--system", "--prefix", "--sha256", "--key", "--uninstall", "--purge"):
        assert f"  {option} " in said
    assert max(map(len, said.splitlines())) <= 125
