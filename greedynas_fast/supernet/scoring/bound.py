"""How much scoring may hold at once, and what is done where not even that much memory is there."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import torch

from greedynas_fast.errors import InputError
from greedynas_fast.ops import release_memory

MEMORY = 1 << 30
# What the errors of allocators say: torch's on the CPU, C++ (the compiled core, oneDNN), cuBLAS and cuDNN.
_SAYINGS = ("not enough memory", "allocate memory", "bad_alloc", "alloc_failed")


class MemoryBound:
    """A bound that calls of `score_paths` share: where memory runs out it is halved, for all later calls too.

    Attributes:
        num_bytes: bytes of activations, or of statistics, that are held at most; see `score_paths`.
        group: paths that are scored together at most; None: all that are asked for.
    """

    def __init__(self, num_bytes: int = MEMORY, say: Callable[[str], None] | None = None) -> None:
        """A bound that has not been halved yet.

        Args:
            num_bytes: at least 0.
            say: takes the sentence that tells of the first halving; standard error if None.

        Raises:
            InputError: a negative number.
        """
        if num_bytes < 0:
            raise InputError(f"memory: expected 0 bytes or more, got {num_bytes}")
        self.num_bytes = num_bytes
        self.group: int | None = None
        self._say = say or _to_stderr

    def halve(self, num_paths: int, num_images: int) -> None:
        """Let fewer paths share less.

        Args:
            num_paths: that memory did not suffice for together.
            num_images: a forward pass.

        Raises:
            InputError: there was one path only, which shares nothing.
        """
        if num_paths <= 1:
            raise InputError(
                f"batch_size: there is not enough memory to score one path on {num_images} images at once; give "
                "it fewer (train.score_batch_size, search_stage.batch_size)."
            )
        if self.group is None:
            self._say(
                f"not enough memory to score {num_paths} paths together; going on with half as many or less, and half "
                "the memory for what they share: slower, with the same scores"
            )
        self.group, self.num_bytes = num_paths // 2, self.num_bytes // 2


def runs_out_of_memory(work: Callable[[], object]) -> bool:
    """Do some work; whether there was not enough memory for it."""
    try:
        work()
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if not any(saying in str(error).lower() for saying in _SAYINGS):
            raise
    else:
        return False
    # Only here, where the exception is gone and with it the frames that hold activations.
    gc.collect()
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)
