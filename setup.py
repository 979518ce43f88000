"""What pyproject.toml cannot say: the compiled parts are built where cargo is, and left out, in one line, where it is not.

PODWIRE_BUILD_NATIVE=0 leaves them out; scripts/build-native.sh builds them into a source tree.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from setuptools import setup


def native() -> dict[str, Any]:
    """Return the arguments of `setup` that build the compiled parts; none where that cannot be done."""
    if os.environ.get("PODWIRE_BUILD_NATIVE") == "0":
        return {}
    try:
        from setuptools_rust import Binding, RustExtension
    except ImportError:
        return _without("setuptools-rust is not installed")
    if shutil.which("cargo") is None:
        return _without("there is no cargo")
    crates = [
        RustExtension(
            "router.engine.native._core",
            "router/engine/native/Cargo.toml",
            features=["python"],
            binding=Binding.PyO3,
            py_limited_api=True,
            args=["--locked"],
            debug=False,
            optional=True,
        ),
        RustExtension(
            {"podwire-cni": "shim.cni.native.podwire-cni"},
            "shim/cni/native/Cargo.toml",
            binding=Binding.Exec,
            args=["--locked"],
            debug=False,
            optional=True,
        ),
    ]
    return {"rust_extensions": crates, "options": {"bdist_wheel": {"py_limited_api": "cp311"}}}


def _without(why: str) -> dict[str, Any]:
    print(
        f"podwire: {why}: the engine and the CNI plugin in Python are installed, not the compiled ones", file=sys.stderr
    )
    return {}


setup(**native())
