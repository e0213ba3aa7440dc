"""The folder of scripts/package as .deb, .rpm and OCI image. Each function says what it made, or what is missing for it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
OCI_NAMES = DEBIAN_NAMES
USER = 10001  # of the image, as in examples/Dockerfile
OF_GLIBC = "libresolv.so.2 libnss_dns.so.2 libnss_files.so.2 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1"
UNIT = "federation.service"  # `federation service install --system` writes it

# systemd's node goes on with the new version as soon as its connections have drained; nobody waits for that.
RESTART = f"""\
if [ -d /run/systemd/system ]; then
    systemctl --no-block try-restart {UNIT} || true
fi
"""
STOP = f"""\
if [ -d /run/systemd/system ] && systemctl --quiet is-active {UNIT}; then
    systemctl stop {UNIT} || true
fi
"""


@dataclass
class Built:
    folder: Path
    version: str
    machine: str  # as uname -m says it
    glibc: str
    description: str
    out: Path
    work: Path

    def root(self, name: str) -> Path:
        """A root folder with the files where packages of a distribution have them. A version has a folder of its own here
        too, so that a node that still runs never imports another version's code."""
        root = self.work / name
        shutil.copytree(self.folder, root / "usr/lib/federation" / self.version, symlinks=True)
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/federation").symlink_to(f"../lib/federation/{self.version}/federation")
        for path in (root, *root.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        return root


def deb(built: Built) -> str:
    if shutil.which("dpkg-deb") is None:
        return "no .deb: dpkg-deb is missing (Debian's package dpkg)"
    root = built.root("deb")
    size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir()) // 1024
    architecture = DEBIAN_NAMES.get(built.machine, built.machine)
    control = root / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        f"Package: federation\nVersion: {debian_version(built.version)}\nArchitecture: {architecture}\n"
        f"Maintainer: The federation project <root@localhost>\nInstalled-Size: {size}\nDepends: libc6 (>= {built.glibc})\n"
        f"Section: net\nPriority: optional\nDescription: {built.description}\n"
        " With its own Python: it needs nothing but glibc.\n"
    )
    scripts = {
        "postinst": 'if [ "$1" = configure ]; then\n' + RESTART + "fi\n",
        "prerm": 'if [ "$1" = remove ]; then\n' + STOP + "fi\n",
    }
    for name, text in scripts.items():
        (control / name).write_text("#!/bin/sh\nset -e\n" + text)
        (control / name).chmod(0o755)
    to = built.out / f"federation_{built.version}_{architecture}.deb"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
    if not _run(["dpkg-deb", "--root-owner-group", "-Zzstd", "-z12", "--build", root, to], environment):
        return "no .deb: dpkg-deb failed"
    shutil.rmtree(root)
    return _made(to)


def debian_version(version: str) -> str:
    """0.2.0rc1 comes before 0.2.0, which Debian and RPM write with a tilde."""
    return re.sub(r"\.?(dev|a|b|rc)(?=\d)", r"~\1", version)


def rpm(built: Built) -> str:
    if shutil.which("rpmbuild") is None:
        return "no .rpm: rpmbuild is missing (Debian's package rpm, Fedora's rpm-build)"
    root = built.root("rpm")
    spec = built.work / "federation.spec"
    spec.write_text(f"""\
%global __os_install_post %{{nil}}
%global _build_id_links none
%global _binary_payload w12.zstdio
Name: federation
Version: {debian_version(built.version)}
Release: 1
Summary: {built.description}
License: MIT
AutoReqProv: no
Requires: libc.so.6(GLIBC_{built.glibc})(64bit)
Requires: coreutils
%description
With its own Python: it needs nothing but glibc.
%install
mkdir -p %{{buildroot}}
cp -a {root}/usr %{{buildroot}}/
%files
%defattr(-,root,root,-)
/usr/lib/federation
/usr/bin/federation
%post
{RESTART}
%preun
if [ "$1" = 0 ]; then
{STOP}
fi
""")
    top = built.work / "rpmbuild"
    if not _run(["rpmbuild", "-bb", "--quiet", "--target", built.machine, "--define", f"_topdir {top}", spec]):
        return "no .rpm: rpmbuild failed"
    made = next(top.rglob("*.rpm"))
    to = built.out / f"federation-{built.version}-1.{built.machine}.rpm"
    shutil.move(made, to)
    shutil.rmtree(root)
    return _made(to)


def oci(built: Built) -> str:
    """An image in OCI's layout, as one file: `podman load`, `skopeo copy oci-archive:FILE ...`, `docker load`.

    The layout is a tar file, two texts in JSON and an index of hashes, written here: that needs no root and no daemon, gives
    the files their owners whoever builds, and the same bytes each time. scripts/package-test has tools look at it.
    It has the folder, this machine's glibc and sh, and nothing else: no package manager, no other program.
    """
    root = built.root("oci")
    home = f"/usr/lib/federation/{built.version}"
    (root / "usr/bin/federation").unlink()
    (root / "usr/bin/federation").write_text(f'#!/bin/sh\nexec {home}/bin/federation -I -S -m federation "$@"\n')
    (root / "usr/bin/federation").chmod(0o755)
    shell = Path("/bin/sh").resolve()
    _copy(shell, root / "bin/sh")
    for library in _libraries(root / home.lstrip("/") / "bin/federation", shell):
        _copy(library, root / str(library).lstrip("/"))
    for name in OF_GLIBC.split():
        for beside in {library.parent for library in _libraries(shell) if library.name == "libc.so.6"}:
            if (beside / name).exists():
                _copy(beside / name, root / str(beside / name).lstrip("/"))
    for name, text in (
        ("passwd", f"root:x:0:0::/root:/bin/sh\nfederation:x:{USER}:{USER}::/state:/bin/sh\n"),
        ("group", f"root:x:0:\nfederation:x:{USER}:\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ):
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc" / name).write_text(text)
    (root / "state").mkdir()
    (root / "tmp").mkdir()

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for path in sorted(root.rglob("*")):
            member = tar.gettarinfo(path, str(path.relative_to(root)))
            member.uid = member.gid = USER if member.name == "state" else 0
            member.uname = member.gname = ""
            member.mtime = 0
            member.mode = {"state": 0o700, "tmp": 0o1777}.get(member.name, member.mode & 0o755)
            if member.isreg():
                with path.open("rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)
    shutil.rmtree(root)
    config = {
        "architecture": OCI_NAMES.get(built.machine, built.machine),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": str(USER),
            "Env": ["PATH=/usr/bin:/bin", "HOME=/state", "FEDERATION_STATE_DIR=/state", "FEDERATION_LOG_FORMAT=json"],
            "Entrypoint": ["/usr/bin/federation"],
            "Cmd": ["join", "--listen", "0.0.0.0:8484"],
            "Volumes": {"/state": {}},
            "ExposedPorts": {"4484/tcp": {}, "8484/tcp": {}},
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "federation",
                "org.opencontainers.image.version": built.version,
                "org.opencontainers.image.licenses": "MIT",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "scripts/package"}],
    }
    to = built.out / f"federation-{built.version}-linux-{built.machine}.oci.tar"
    _write_layout(to, gzip.compress(layer.getvalue(), 9, mtime=0), config, built.version)
    return _made(to)


def _write_layout(to: Path, layer: bytes, config: dict[str, object], tag: str) -> None:
    kind = "application/vnd.oci.image"
    blobs: dict[str, bytes] = {}

    def descriptor(media: str, data: bytes, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"{kind}.{media}", "digest": f"sha256:{digest}", "size": len(data), **more}

    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": descriptor("config.v1+json", json.dumps(config, indent=1).encode()),
        "layers": [descriptor("layer.v1.tar+gzip", layer)],
    }
    named = {"org.opencontainers.image.ref.name": tag}
    platform = {"architecture": config["architecture"], "os": config["os"]}
    entry = descriptor("manifest.v1+json", json.dumps(manifest, indent=1).encode(), annotations=named, platform=platform)
    index = {"schemaVersion": 2, "mediaType": f"{kind}.index.v1+json", "manifests": [entry]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index, indent=1).encode(), **blobs}
    with tarfile.open(to, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _libraries(*programs: Path) -> list[Path]:
    found = set()
    for program in programs:
        for line in subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
            match = re.search(r"(/\S+) \(0x", line)
            if match and "/federation/" not in match[1]:
                found.add(Path(match[1]))
    return sorted(found)


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source.resolve(), to)
    to.chmod(0o755)


def _run(command: list[str | Path], environment: dict[str, str] | None = None) -> bool:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    return done.returncode == 0


def _made(path: Path) -> str:
    return f"{path.name}: {path.stat().st_size / 1e6:.1f} MB"
