"""The device a run uses."""

from __future__ import annotations

import torch

from greedynas_fast.errors import InputError


def resolve_device(name: str = "auto") -> torch.device:
    """Turns the user's word into a device that exists.

    Args:
        name: `auto` (the first GPU if torch can use one, else the CPU), `cpu`, `cuda`, or `cuda:N`.

    Raises:
        InputError: another word, or a GPU that is not there.
    """
    if name == "cpu":
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (":" in name and not (number.isascii() and number.isdigit())):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}.")
    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no usable NVIDIA GPU"
        raise InputError(f"device: {name} was asked for, but {why}. Use `cpu` or `auto`.")
    index = int(number or 0)
    if index >= torch.cuda.device_count():
        raise InputError(f"device: {name} was asked for, but there are only {torch.cuda.device_count()} GPUs (from 0).")
    return torch.device("cuda", index)
