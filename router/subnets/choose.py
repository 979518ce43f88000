"""Which source of subnets a router was told to use."""

from __future__ import annotations

from router.config import Settings
from router.journal import Journal
from router.subnets.file import FileSource
from router.subnets.source import Source


def open_source(settings: Settings, journal: Journal, identity: str) -> Source | None:
    """Make the source that the settings name; None when the table comes over gRPC. Raise Refusal when it cannot be.

    `identity` is the UUID of the state directory. What a source needs and few have is imported only for it.
    """
    if settings.subnets_file is not None:
        return FileSource(settings.subnets_file)
    if settings.etcd is not None:
        from router.subnets.etcd.source import EtcdSource

        return EtcdSource(
            settings.etcd,
            node=settings.node,
            identity=identity,
            endpoint=settings.underlay,
            networks=settings.networks,
            vni=settings.vni,
            memory=journal.memory("etcd"),
            place=journal.place,
        )
    if settings.kubernetes is not None:
        from router.subnets.kubernetes import KubernetesSource

        return KubernetesSource(settings.kubernetes, settings.node, settings.underlay, settings.networks)
    return None
