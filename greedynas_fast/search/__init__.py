"""Search over paths, ask and tell: NSGA-II (pymoo) or random, under an operation mask, a MAC limit and a path filter.

Here is nothing that scores a path: the caller evaluates what `Search.ask` gives and tells the accuracies. pymoo is
imported when a search with it starts.
"""

from greedynas_fast.search.config import SearchConfig
from greedynas_fast.search.records import Record
from greedynas_fast.search.screen import ScreenCounts
from greedynas_fast.search.search import Search

__all__ = ["Record", "ScreenCounts", "Search", "SearchConfig"]
