"""Log records as JSON lines, in the words of OpenTelemetry's log data model (opentelemetry.io/docs/specs/otel/logs/data-model)."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import unquote

from router.model import AttachmentKey, Endpoint

_SEVERITIES = {
    logging.DEBUG: ("DEBUG", 5),
    logging.INFO: ("INFO", 9),
    logging.WARNING: ("WARN", 13),
    logging.ERROR: ("ERROR", 17),
    logging.CRITICAL: ("FATAL", 21),
}
_MOST_RESOURCE_ATTRIBUTES = 64


def resource(node: str, version: str, environ: Mapping[str, str], *, kubernetes: bool = False) -> dict[str, str]:
    """Say whose records they are: the same in each.

    What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say goes first, as OpenTelemetry's SDKs have it; Kubernetes'
    downward API can put names of the Pod there.
    """
    found = {
        "service.name": "podwire",
        "service.version": version,
        "service.instance.id": node,
        "host.name": socket.gethostname(),
    }
    if kubernetes:
        found["k8s.node.name"] = node
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")[:_MOST_RESOURCE_ATTRIBUTES]:
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            found[unquote(key.strip())] = unquote(value.strip())
    if name := environ.get("OTEL_SERVICE_NAME", ""):
        found["service.name"] = name
    return found


class JsonFormatter(logging.Formatter):
    """One JSON object a line: timestamp, time_unix_nano, severity_text, severity_number, body, scope, attributes, resource."""

    def __init__(self, resource_attributes: Mapping[str, str]) -> None:
        super().__init__()
        self._resource = dict(resource_attributes)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        level = max((known for known in _SEVERITIES if known <= record.levelno), default=logging.DEBUG)
        text, number = _SEVERITIES[level]
        at_us = round(record.created * 1e6)
        line = {
            "timestamp": datetime.fromtimestamp(at_us // 10**6, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            + f".{at_us % 10**6:06}Z",
            "time_unix_nano": at_us * 1000,
            "severity_text": text,
            "severity_number": number,
            "body": record.getMessage(),
            "scope": {"name": record.name},
            "attributes": self._attributes(record),
            "resource": self._resource,
        }
        return json.dumps(line, ensure_ascii=False)

    def _attributes(self, record: logging.LogRecord) -> dict[str, object]:
        """Return what the message is about, by OpenTelemetry's names where it has any."""
        found: dict[str, object] = {"thread.name": record.threadName}
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, AttachmentKey):
                found |= {"podwire.sandbox.id": argument.sandbox_id, "network.interface.name": argument.if_name}
            elif isinstance(argument, Endpoint):
                found |= {"network.peer.address": str(argument.address), "network.peer.port": argument.port}
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            found |= {
                "exception.type": kind.__qualname__,
                "exception.message": str(error),
                "exception.stacktrace": self.formatException(record.exc_info),
            }
        return found
