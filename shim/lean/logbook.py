"""A log file for executables that may print nothing: a line a happening, appended whole."""

from __future__ import annotations

import os
import sys
import time


def note(path: str, message: str) -> None:
    """Append a line; one that cannot be written is lost, and must not stop a container."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f"{stamp} {os.path.basename(sys.argv[0])}[{os.getpid()}] {' '.join(message.split())}\n"  # noqa: PTH119
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError:
        return
    try:
        os.write(fd, line.encode())
    except OSError:
        pass
    finally:
        os.close(fd)
