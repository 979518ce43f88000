"""The contenders, in the order the report shows them."""

from __future__ import annotations

from benchmarks.contenders.fastd import Fastd
from benchmarks.contenders.interface import Contender, Network, Way, absence
from benchmarks.contenders.nebula import Nebula
from benchmarks.contenders.podwire import Podwire
from benchmarks.contenders.tinc import Tinc
from benchmarks.contenders.veth import Veth
from benchmarks.contenders.vxlan import Vxlan
from benchmarks.contenders.wireguard import Wireguard
from router.engine.choose import available

_SPIN_US = 100
_SPINNING = "native"
"""The engine that can spin before it sleeps."""
_CAPTURED = ("tcp1", "udp64")
_ENGINES = available()
_BEST, *_OTHERS = _ENGINES
CONTENDERS: tuple[Contender, ...] = (
    Podwire("podwire", _BEST),
    *(Podwire(f"podwire-{engine}", engine) for engine in _OTHERS),
    *(Podwire("podwire-spin", engine, _SPIN_US, ("rtt",)) for engine in _ENGINES if engine == _SPINNING),
    Podwire("podwire-filter", _BEST, only=_CAPTURED, captured="udp port 1"),
    Podwire("podwire-capture", _BEST, only=_CAPTURED, captured=""),
    Veth(),
    Vxlan(),
    Wireguard(),
    Nebula(),
    Fastd(),
    Tinc(),
)

__all__ = ["CONTENDERS", "Contender", "Network", "Way", "absence"]
