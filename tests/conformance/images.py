"""The one image there is, made here from busybox-static: a tar as `docker save` writes it, which every runtime loads."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path

from tests.conformance.parts import MissingPart

NAME = "localhost/podwire/busybox:1"
SLEEP = ["/bin/busybox", "sleep", "2147483647"]
"""What the image does when nothing is asked of it, so that it serves as a sandbox's pause too."""
SERVE = ["/bin/httpd", "-f", "-p", "8080", "-h", "/www"]
"""Answers /cgi-bin/who with the address it sees the client at, over both IP versions."""


def build(path: Path) -> Path:
    """Write the image to a file and return that."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise MissingPart("no busybox here; run scripts/conformance-setup.sh")
    layer = _layer(Path(busybox).read_bytes())
    diff_id = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Entrypoint": SLEEP, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
            "history": [{"created_by": "tests/conformance/images.py"}],
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as tar:
        for name, content in ((config_name, config), ("layer.tar", layer), ("manifest.json", manifest)):
            _add(tar, name, content)
    return path


def _layer(busybox: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("bin", "etc", "proc", "sys", "dev", "tmp", "www", "www/cgi-bin"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", busybox, 0o755)
        for name in ("sh", "ping", "nc", "ip", "httpd", "wget", "cat", "sleep"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        _add(tar, "www/cgi-bin/who", b'#!/bin/sh\necho\necho "$REMOTE_ADDR"\n', 0o755)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _architecture() -> str:
    """Return this machine's architecture in Go's words, which images use."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
