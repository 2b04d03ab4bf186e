"""greedynas_fast: one-shot neural architecture search with a greedy path filter (GreedyNASv2, CVPR 2022).

Rooms are imported on first use, so that `import greedynas_fast` costs next to nothing and `greedynas_fast.spaces` needs
no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "data",
    "errors",
    "experiments",
    "filter",
    "nn",
    "ops",
    "paths",
    "runtime",
    "sampling",
    "search",
    "spaces",
    "stages",
    "supernet",
)

__all__ = ["__version__", "accelerate", *_ROOMS]


def __getattr__(name: str) -> ModuleType | Callable[..., list[str]]:
    if name == "accelerate":
        return importlib.import_module(f"{__name__}.nn").accelerate  # type: ignore[no-any-return]
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "accelerate", *_ROOMS])
