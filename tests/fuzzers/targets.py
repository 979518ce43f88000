"""All targets there are."""

from __future__ import annotations

from tests.fuzzers.answers import Documents, LeanAnswers, TombstoneFiles
from tests.fuzzers.cni import Plugins
from tests.fuzzers.control import Calls
from tests.fuzzers.engines import all_engines
from tests.fuzzers.relay import RelayRequests
from tests.fuzzers.stores import EtcdValues, KubernetesNodes
from tests.fuzzers.tables import Settings, SubnetTables
from tests.fuzzers.takeover import MadPredecessors, MadSuccessors
from tests.fuzzers.target import Target
from tests.fuzzers.web import WebRequests
from tests.fuzzers.wire import Datagrams, InnerPackets, Programs


def targets() -> list[Target]:
    """Return them, from the wire inwards."""
    return [
        InnerPackets(),
        Datagrams(),
        Programs(),
        *all_engines(),
        Calls(),
        WebRequests(),
        MadSuccessors(),
        MadPredecessors(),
        Plugins(),
        Documents(),
        LeanAnswers(),
        TombstoneFiles(),
        SubnetTables(),
        Settings(),
        EtcdValues(),
        KubernetesNodes(),
        RelayRequests(),
    ]
