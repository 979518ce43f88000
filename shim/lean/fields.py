"""Generated from proto/ by proto/generate.py; do not edit. What shim/lean/codec.py knows of the contract."""

METHODS: dict[str, tuple[str, str, str]] = {
    "Attach": ("AttachRequest", "AttachResponse", "/podwire.v1.Router/Attach"),
    "Detach": ("DetachRequest", "DetachResponse", "/podwire.v1.Router/Detach"),
    "Sync": ("SyncRequest", "SyncResponse", "/podwire.v1.Router/Sync"),
    "Check": ("CheckRequest", "CheckResponse", "/podwire.v1.Router/Check"),
    "ListAttachments": ("ListAttachmentsRequest", "ListAttachmentsResponse", "/podwire.v1.Router/ListAttachments"),
    "GetStatus": ("GetStatusRequest", "Status", "/podwire.v1.Router/GetStatus"),
}
"""Method to request, answer and path."""

MESSAGES: dict[str, dict[int, tuple[str, str, bool]]] = {
    "AttachRequest": {
        1: ("key", "AttachmentKey", False),
        2: ("netns_path", "string", False),
        3: ("addresses", "string", True),
        4: ("mtu_bytes", "uint", False),
        5: ("labels", "map", False),
        6: ("owner", "string", False),
        7: ("ports", "PortMapping", True),
        8: ("limits", "Limits", False),
        9: ("began_ns", "uint", False),
    },
    "AttachResponse": {
        1: ("attachment", "Attachment", False),
    },
    "DetachRequest": {
        1: ("key", "AttachmentKey", False),
    },
    "DetachResponse": {
        1: ("detached", "bool", False),
    },
    "SyncRequest": {
        1: ("live", "AttachmentKey", True),
        2: ("owner", "string", False),
        3: ("as_of_ns", "uint", False),
    },
    "SyncResponse": {
        1: ("released", "AttachmentKey", True),
    },
    "CheckRequest": {
        1: ("key", "AttachmentKey", False),
        2: ("netns_path", "string", False),
        3: ("addresses", "string", True),
        4: ("routes", "string", True),
    },
    "CheckResponse": {
        1: ("attachment", "Attachment", False),
    },
    "ListAttachmentsRequest": {
    },
    "ListAttachmentsResponse": {
        1: ("attachments", "Attachment", True),
    },
    "GetStatusRequest": {
    },
    "Status": {
        1: ("node", "string", False),
        2: ("engine", "string", False),
        3: ("version", "string", False),
        4: ("started_at_s", "double", False),
        5: ("networks", "string", True),
        6: ("subnets", "string", True),
        7: ("node_addresses", "string", True),
        8: ("endpoint", "Endpoint", False),
        9: ("mtu_bytes", "uint", False),
        10: ("vni", "uint", False),
        11: ("offloads", "Offloads", False),
        12: ("notes", "string", True),
        13: ("attachments", "uint", False),
        14: ("peers", "uint", False),
        15: ("table_version", "uint", False),
        16: ("table_age_s", "double", False),
        17: ("free_addresses", "FreeAddresses", True),
        18: ("resident_bytes", "uint", False),
        19: ("table_error", "string", False),
        20: ("peers_unreachable", "uint", False),
        21: ("unreachable", "string", True),
        22: ("source", "SubnetSource", False),
        23: ("confinement", "string", False),
    },
    "AttachmentKey": {
        1: ("sandbox_id", "string", False),
        2: ("if_name", "string", False),
    },
    "PortMapping": {
        1: ("host_port", "uint", False),
        2: ("container_port", "uint", False),
        3: ("protocol", "string", False),
        4: ("host_address", "string", False),
    },
    "Limits": {
        1: ("ingress_bits_per_s", "uint", False),
        2: ("ingress_burst_bits", "uint", False),
        3: ("egress_bits_per_s", "uint", False),
        4: ("egress_burst_bits", "uint", False),
    },
    "Attachment": {
        1: ("key", "AttachmentKey", False),
        2: ("netns_path", "string", False),
        3: ("addresses", "string", True),
        4: ("mtu_bytes", "uint", False),
        5: ("labels", "map", False),
        6: ("owner", "string", False),
        7: ("ports", "PortMapping", True),
        8: ("limits", "Limits", False),
    },
    "Endpoint": {
        1: ("address", "string", False),
        2: ("port", "uint", False),
    },
    "Offloads": {
        1: ("tun_checksum", "bool", False),
        2: ("tun_tso", "bool", False),
        3: ("tun_uso", "bool", False),
        4: ("udp_segment", "bool", False),
        5: ("udp_gro", "bool", False),
        6: ("max_segments", "uint", False),
    },
    "FreeAddresses": {
        1: ("subnet", "string", False),
        2: ("free", "uint", False),
    },
    "SubnetSource": {
        1: ("kind", "string", False),
        2: ("where", "string", False),
        3: ("connected", "bool", False),
        4: ("confirmed_age_s", "double", False),
        5: ("error", "string", False),
        6: ("lease", "Lease", False),
    },
    "Lease": {
        1: ("held", "bool", False),
        2: ("epoch", "uint", False),
        3: ("expires_in_s", "double", False),
        4: ("reserved", "bool", False),
        5: ("why", "string", False),
    },
}
"""Message to field number to name, kind (a scalar, "map" of text to text, or a message) and whether it repeats."""
