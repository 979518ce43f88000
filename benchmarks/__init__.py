"""Podwire's benchmark: `python -m benchmarks --help`. Not part of the wheel."""
