"""Changes to files that are all made, or none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from shim import wholefile
from shim.install import manifest
from shim.install.changes import Change, Kind, Present, look
from shim.install.manifest import Entry, Manifest
from shim.install.root import InstallError, Root

_MANIFEST_MODE = 0o600
_STATE_MODE = 0o700


class Transaction:
    """File changes that are taken back, last first, unless the block ends well. OSError becomes InstallError."""

    def __init__(self) -> None:
        self.directories: list[Path] = []
        """Those that were made."""
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        stuck = []
        for step in reversed(self._undo):
            try:
                step()
            except OSError as failure:
                stuck.append(f"{failure.filename}: {failure.strerror}")
        if isinstance(error, OSError):
            outcome = f"and could not be taken back whole ({'; '.join(stuck)})" if stuck else "nothing was changed"
            raise InstallError(f"{error.filename or error}: {error.strerror}; {outcome}") from None

    def write(self, path: Path, content: bytes, mode: int, directory_mode: int = 0o755) -> None:
        """Put a file in place, whole."""
        self._make_directory(path.parent, directory_mode)
        self._remember(path)
        wholefile.write(path, content, mode)

    def remove(self, path: Path) -> None:
        """Take a file away."""
        self._remember(path)
        path.unlink(missing_ok=True)

    def remove_directory(self, path: Path) -> bool:
        """Take a directory away if it is empty."""
        try:
            mode = path.stat().st_mode & 0o7777
            path.rmdir()
        except OSError:
            return False
        self._undo.append(lambda: path.mkdir(mode=mode))
        return True

    def _make_directory(self, path: Path, mode: int) -> None:
        if path.is_dir():
            return
        self._make_directory(path.parent, 0o755)
        path.mkdir(mode=mode)
        self.directories.append(path)
        self._undo.append(lambda: _gone(path.rmdir))

    def _remember(self, path: Path) -> None:
        before = look(path)
        if isinstance(before, Present):
            self._undo.append(lambda: wholefile.write(path, before.content, before.mode))
        else:
            self._undo.append(lambda: path.unlink(missing_ok=True))


def install(root: Root, changes: Sequence[Change], present: Manifest) -> Manifest:
    """Make the changes; return what is installed now. Raise InstallError, and nothing has changed."""
    due = [change for change in changes if change.after is not None and change.kind is not Kind.BLOCKED]
    entries = dict(present.entries)
    for change in due:
        entries[change.path] = _entry(change, present.entries.get(change.path))
    made = replace(present, entries=entries)
    with Transaction() as transaction:
        # Known before it is there: whatever ends this process, `--remove` undoes what there is.
        _keep(root, transaction, made)
        for change in due:
            if change.kind is not Kind.SAME and change.after is not None:
                transaction.write(root.at(change.path), change.after.content, change.after.mode)
        directories = manifest.union(present.directories, map(root.named, transaction.directories))
        settled = {
            path: replace(entry, sha256=entry.sha256[-1:]) if any(path == each.path for each in due) else entry
            for path, entry in entries.items()
        }
        made = Manifest(settled, directories)
        _keep(root, transaction, made)
    return made


def remove(root: Root, changes: Sequence[Change], present: Manifest) -> None:
    """Undo an installation. Raise InstallError, and nothing has changed."""
    with Transaction() as transaction:
        for change in changes:
            if change.kind is Kind.RESTORED and change.after is not None:
                transaction.write(root.at(change.path), change.after.content, change.after.mode)
            elif change.kind is Kind.REMOVED:
                transaction.remove(root.at(change.path))
        transaction.remove(root.at(manifest.PATH))
        # The deepest first. One in which something else stands by now stays.
        for directory in sorted(present.directories, key=len, reverse=True):
            transaction.remove_directory(root.at(directory))


def _entry(change: Change, known: Entry | None) -> Entry:
    assert change.after is not None
    now = manifest.digest(change.after.content)
    if known is not None and (change.before is None or manifest.digest(change.before.content) in (*known.sha256, now)):
        return known if known.sha256[-1:] == (now,) else replace(known, sha256=(*known.sha256, now))
    if change.before is None or change.kind is Kind.SAME or change.before.content == change.after.content:
        return Entry((now,))
    return Entry((now,), change.before.content, change.before.mode)


def _keep(root: Root, transaction: Transaction, found: Manifest) -> None:
    transaction.write(root.at(manifest.PATH), found.text().encode(), _MANIFEST_MODE, _STATE_MODE)


def _gone(step: Callable[[], object]) -> None:
    with suppress(FileNotFoundError):
        step()
