"""Hostile input for every parser that a Pod, a peer, a caller, a file or a program's input reaches.

    python -m tests.fuzzers --seconds 60 [--seed N] [--only NAME] [--list] [--replay FILE]

A target makes an input from a seeded sequence and feeds it; what it raises but for the refusals it is known to make is a finding,
and so is an input that takes long, or memory that grows. Input number I of a target is the same whenever the seed is the same.
"""

import os

# gRPC writes a line of its own whenever a process that uses it starts another one, as for the compiled CNI plugin.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
