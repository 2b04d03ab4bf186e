"""Seeds as pure functions of (seed, keys), and the switches that make torch repeat itself bit for bit."""

from __future__ import annotations

import hashlib
import os

import torch


def seed_for(seed: int, *keys: int | str) -> int:
    """A 64-bit seed for one purpose, e.g. `seed_for(run_seed, "filter", update)`.

    Different keys give independent seeds, and the result depends on nothing else: not on the process, the order of
    calls or Python's hash seed.

    Args:
        seed: any integer.
        *keys: integers and strings; `1` and `"1"` are different keys.

    Returns:
        An integer in [0, 2**64).

    Raises:
        TypeError: a key that is neither an int nor a str (a bool is refused too).
    """
    parts: list[bytes] = []
    for key in (seed, *keys):
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise TypeError(f"seed_for: expected int or str keys, got {type(key).__name__}")
        text = (f"i{key}" if isinstance(key, int) else f"s{key}").encode()
        parts.append(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest(), "little")


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators that torch's functions draw from on the CPU and on a device.

    As `torch.manual_seed`, which tells devices of all kinds that torch knows, though, and notes a stack trace for each
    that is not there: half a millisecond in a deep stack.

    Args:
        device: where is computed.
        seed: in [0, 2**64).
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A fresh CPU generator seeded with `seed_for(seed, *keys)`."""
    return torch.Generator().manual_seed(seed_for(seed, *keys))


def set_threads(num_threads: int) -> None:
    """Bounds the threads of torch's CPU operators.

    Args:
        num_threads: at least 1; 0 leaves torch's own choice. Sums over threads depend on their number, so a run goes
            on with the same bytes only with the same number.

    Raises:
        ValueError: a negative number.
    """
    if num_threads < 0:
        raise ValueError(f"num_threads: expected at least 0, got {num_threads}")
    if num_threads > 0:
        torch.set_num_threads(num_threads)


def make_deterministic() -> None:
    """Makes torch choose deterministic algorithms, or raise where it has none; for the rest of the process."""
    # cuBLAS needs a fixed workspace, and reads this when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    # What `torch.use_deterministic_algorithms` sets, but for torch.compile, which that imports: two seconds.
    torch.set_deterministic_debug_mode("error")
    # Filling every new tensor is a debugging aid that costs a pass over memory, and changes no defined result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
