"""`python -m greedynas_fast`, the same as the command `greedynas-fast`."""

from __future__ import annotations

from greedynas_fast.cli import run_process

run_process()
