"""Validation loss and accuracy of many paths on the same images, what they share computed once."""

from greedynas_fast.supernet.scoring.bound import MemoryBound
from greedynas_fast.supernet.scoring.plain import score_one_at_a_time
from greedynas_fast.supernet.scoring.scores import PathScores
from greedynas_fast.supernet.scoring.shared import score_paths

__all__ = ["MemoryBound", "PathScores", "score_one_at_a_time", "score_paths"]
