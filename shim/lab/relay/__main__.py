"""`python -m shim.lab.relay SOCKET`: carry frames in this namespace until ended, as told at that Unix socket."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from shim.lab.relay.serve import Relay

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback: there is nothing to undo
    Relay(Path(sys.argv[1])).run()
