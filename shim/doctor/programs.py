"""The programs that `podwire install` wrote: whether they start, and whether they are as they were written."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from shim import launchers
from shim.doctor.finding import Finding, fail, ok, warn
from shim.doctor.site import Site
from shim.install import changes, manifest
from shim.install.changes import Kind
from shim.install.root import InstallError

_TIMEOUT_S = 20
_MOST_BYTES = 4096
_ELF = b"\x7fELF"


def installed(site: Site) -> Iterator[Finding]:
    """Look whether what was installed is still there, and quick to start."""
    check = "installed files"
    try:
        present = manifest.load(site.root)
        found = changes.to_remove(site.root, present)
    except InstallError as error:
        yield warn(check, error.message, "run this as root; what was installed is not known without it")
        return
    for each in found:
        if each.kind is Kind.GONE:
            yield warn(check, f"{each.path} was installed, and is gone", "podwire install; or podwire install --remove")
        elif each.kind is Kind.LEFT:
            what = f"{each.path} is not as it was installed"
            yield warn(check, what, "if that was not meant: podwire install --overwrite")
    unwritable = launchers.uncompiled() if found else []
    for directory in unwritable:
        what = f"{directory} has modules that are not compiled: our programs compile them at each start, and are slow"
        yield warn(check, what, f"run as who may write there: {launchers.interpreter()} -m compileall {directory}")
    if found and not unwritable and not any(each.kind in (Kind.GONE, Kind.LEFT) for each in found):
        yield ok(check, f"{len(found)} are as they were installed")


def looked_at(site: Site, check: str, path: str) -> Iterator[Finding]:
    """Look whether a program of ours starts: its interpreter, its package, and it itself."""
    try:
        with site.root.at(path).open("rb") as file:
            first = file.read(_MOST_BYTES)
    except OSError as error:
        yield fail(check, f"{path} cannot be read: {error.strerror}", f"podwire install {check}")
        return
    if first.startswith(_ELF):
        yield from _compiled(site, check, path)
        return
    lines = first.decode(errors="replace").splitlines()
    shebang = re.match(r"#!(\S+)", lines[0] if lines else "")
    if shebang is None:
        yield fail(check, f"{path} is no program: no Pod starts", f"podwire install {check} --overwrite")
        return
    if not os.access(shebang[1], os.X_OK):
        what = f"{path} needs the interpreter {shebang[1]}, which is not there: no Pod starts"
        yield fail(check, what, f"podwire install {check}, with the Python that is there now")
        return
    place = re.search(r"sys\.path\.insert\(0, '([^']*)'\)", "\n".join(lines))
    if place and not (Path(place[1]) / "shim").is_dir():
        what = f"{path} imports from {place[1]}, where Podwire is not any more: no Pod starts"
        yield fail(check, what, f"podwire install {check}, with the Podwire that is there now")
        return
    if not site.root.is_node:
        yield ok(check, f"{path} has its interpreter")  # not run: who made the tree is not known
        return
    if trouble := _cannot_start(site, path):
        what = f"{path} does not start: {trouble}"
        yield fail(check, what, f"podwire install {check}, and look whether Podwire is whole")
    else:
        yield ok(check, f"{path} starts")


def _compiled(site: Site, check: str, path: str) -> Iterator[Finding]:
    """Look at a compiled program: it does not change with the package, as those in Python do."""
    built = launchers.built_client()
    if site.root.is_node and (trouble := _cannot_start(site, path)):
        what = f"{path}, which is compiled, does not start: {trouble}"
        yield fail(check, what, f"scripts/build-native.sh, then podwire install {check}; or --cni-client python")
    elif built and built.read_bytes() != site.root.at(path).read_bytes():
        what = f"{path} is compiled, and not the one that this Podwire has: {built}"
        yield warn(check, what, f"podwire install {check}")
    else:
        yield ok(check, f"{path}, which is compiled, {'starts' if site.root.is_node else 'is there'}")


def _cannot_start(site: Site, path: str) -> str:
    """Return why a program does not start; empty when it does."""
    command = [str(site.root.at(path)), "--help"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"it did nothing for {_TIMEOUT_S} s"
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return said[-1] if "Traceback" in done.stderr or done.returncode < 0 or done.returncode in (126, 127) else ""
