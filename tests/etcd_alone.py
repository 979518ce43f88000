"""One router's source as a process: `python -m tests.etcd_alone WISHES`; says what it read, and lives until killed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from router.errors import Refusal
from router.subnets.etcd import holder
from tests.etcd_rig import Told, settings, source


def main() -> None:
    wishes = json.loads(sys.argv[1])
    folder, name, number = Path(wishes["folder"]), wishes["name"], wishes["number"]
    if boot := wishes.get("boot"):  # as if the machine were another, or had booted since
        holder._BOOT_ID = folder / f"boot-{boot}"
        holder._BOOT_ID.write_text(f"{boot:>08}-0000-0000-0000-000000000000\n")
    others = {key: wishes[key] for key in ("identity", "place") if key in wishes}
    made = source(
        folder, settings(wishes["url"], ttl_s=wishes["ttl_s"], prefix=wishes["prefix"]), name, number, **others
    )
    try:
        nodes = made.read()
    except Refusal as refusal:
        print(json.dumps({"refused": refusal.message}), flush=True)
        return
    lease = made.state().lease
    assert lease is not None
    table = None if nodes is None else [node.name for node in nodes]
    told = {"held": lease.held, "subnets": list(map(str, lease.subnets)), "epoch": lease.epoch, "why": lease.why}
    made.start(Told())
    print(json.dumps({"table": table, **told}), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
