"""The subnets that Kubernetes allotted its Nodes, for a router.

    api.py     the client library's edge: pages of Nodes, events of a watch, and what can go wrong, in words
    rows.py    a Node object → a row of the table, or why it is left out: pure
    source.py  list, then watch; what changed is gathered and told

A Node's row is made of its name, spec.podCIDRs and the InternalIP of the underlay's IP version; the port is the underlay's
own. Annotations override: podwire.dev/endpoint: ADDR[:PORT], podwire.dev/offload: "false".
"""

from router.subnets.kubernetes.source import KubernetesSource

__all__ = ["KubernetesSource"]
