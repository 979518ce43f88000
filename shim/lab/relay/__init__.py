"""Links that lose, delay, reorder and double frames: what netem does, in a process, as not every kernel has netem.

It runs in the namespace of the underlay, beside the bridge. Frames between ports whose link is impaired the bridge drops
(`shim.lab.bridge`), and the relay carries in its place; all others stay in the kernel.

    a frame arrives at a port's AF_PACKET socket, before the bridge drops it     port.py
      → which lines take it? by its destination, or all of that port             switch.py, pure
      → is it of two Pods that have faults of their own? those come first        inner.py, pure: who they are
      → is it lost, or when is it due, once or twice?                            line.py, pure; what may go wrong: faults.py
      → when it is due, out of the other port                                    serve.py

Frames keep their virtio-net header, so checksums that the sender left to the device stay so.
"""
