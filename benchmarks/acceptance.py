"""Placeholder."""

from benchmarks.figures import Figures
from benchmarks.rounds import Progress

STEPS = 0


def run(figures: Figures, pods: int, seconds: float, progress: Progress) -> None:
    """Nothing yet."""
