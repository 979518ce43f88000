"""What goes wrong with a lab, said to a person."""

from __future__ import annotations


class LabError(Exception):
    """One line: what is wrong, where, and what to do."""
