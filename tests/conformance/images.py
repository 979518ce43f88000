"""The one image there is, made here from busybox-static: a tar as `docker save` writes it, which every runtime loads."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conformance.parts import MissingPart

NAME = "localhost/podwire/busybox:1"
SLEEP = ["/bin/busybox", "sleep", "2147483647"]
"""What the image does when nothing is asked of it, so that it serves as a sandbox's pause too."""
SERVE = ["/bin/httpd", "-f", "-p", "8080", "-h", "/www"]
"""Answers /cgi-bin/who with the address it sees the client at, over both IP versions."""


_APPLETS = ("sh", "ping", "nc", "ip", "httpd", "wget", "cat", "sleep")


def build(path: Path) -> Path:
    """Write the image to a file and return that."""
    files = {
        "bin/busybox": busybox(),
        "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
        "www/cgi-bin/who": b'#!/bin/sh\necho\necho "$REMOTE_ADDR"\n',
    }
    path.write_bytes(image_tar(NAME, files, _APPLETS, {"Entrypoint": SLEEP}))
    return path


def busybox() -> bytes:
    """Return the static busybox. MissingPart when there is none."""
    found = shutil.which("busybox")
    if found is None:
        raise MissingPart("no busybox here; run scripts/conformance-setup.sh")
    return Path(found).read_bytes()


def image_tar(name: str, files: dict[str, bytes], applets: Sequence[str] = (), config: Any = None) -> bytes:
    """Return an image of one layer: executable files, and links to busybox for the applets."""
    layer = _layer(files, applets)
    description = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], **(config or {"Cmd": ["/bin/sleep", "1000000"]})},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created_by": "tests/conformance/images.py"}],
        }
    ).encode()
    description_name = f"{hashlib.sha256(description).hexdigest()}.json"
    manifest = json.dumps([{"Config": description_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for entry, content in ((description_name, description), ("layer.tar", layer), ("manifest.json", manifest)):
            _add(tar, entry, content)
    return out.getvalue()


def _layer(files: dict[str, bytes], applets: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        parents = {str(parent) for path in files for parent in Path(path).parents} - {"."}
        for directory in sorted({"bin", "etc", "proc", "sys", "dev", "tmp", *parents}):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path, content in files.items():
            _add(tar, path, content, 0o755)
        for applet in applets:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _architecture() -> str:
    """Return this machine's architecture in Go's words, which images use."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
