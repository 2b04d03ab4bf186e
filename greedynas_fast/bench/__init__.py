"""Measurements of the compiled parts beside their peers, in one run, checked before a figure is given.

`registry` names them and runs them, `environment` holds the peers to the same instruction set, `timing` holds clocks,
statistics and the shape of a row, `peers` what the filter is compared with; the other files are one measurement each.
"""

from .registry import MEASUREMENTS, measure

__all__ = ["MEASUREMENTS", "measure"]
