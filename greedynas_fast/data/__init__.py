"""Images and labels: the embedded sample, idx files, folders of images; their parts, batches and augmentation.

What a batch holds is a pure function of (seed, step). This room imports none of the other rooms.
"""

from __future__ import annotations

from greedynas_fast.data.augment import Augment
from greedynas_fast.data.bundle import DataBundle, open_data
from greedynas_fast.data.config import DataConfig
from greedynas_fast.data.splits import Split

__all__ = ["Augment", "DataBundle", "DataConfig", "Split", "open_data"]
