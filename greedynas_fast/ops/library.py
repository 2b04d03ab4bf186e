"""The torch library `greedynas` that all operations are registered in."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("greedynas", "DEF")  # type: ignore[no-untyped-call]
