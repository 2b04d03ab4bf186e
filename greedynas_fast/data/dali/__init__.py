"""The DALI back end: reads and decides in Python, decodes and resizes in one DALI graph, finishes in threads.

`geometry` turns decisions into regions, `pipeline` is the graph, `prepare` makes its input,
`decoder` survives what breaks it, `finish` normalises, `split` runs all of it ahead of the consumer.
Nothing here is random but what `data.draws` draws. DALI is imported when a `DaliSplit` is made.
"""

from __future__ import annotations

from greedynas_fast.data.dali.split import DaliSplit

__all__ = ["DaliSplit"]
