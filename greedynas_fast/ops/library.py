"""The torch library `greedynas` that all operations are registered in, and the threads that they run on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from greedynas_fast import _core

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)

_LIBRARY = torch.library.Library("greedynas", "DEF")  # type: ignore[no-untyped-call]


# torch.library without types, in one place.
def define(schema: str) -> None:
    """Define the operator `greedynas::<schema>`."""
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]


def implement(name: str, function: Callable[..., Any], key: str = "CPU") -> None:
    """Let `function` run the operator for a dispatch key."""
    _LIBRARY.impl(name, function, key)  # type: ignore[no-untyped-call]


def fake(name: str) -> Callable[[_Function], _Function]:
    """A decorator: the function gives the operator's outputs without values, for tracing."""
    decorator: Callable[[_Function], _Function] = torch.library.register_fake(f"greedynas::{name}", lib=_LIBRARY)
    return decorator


def unwatched(*tensors: Tensor) -> bool:
    """Whether nothing but autograd follows what torch's operators do with these tensors.

    Then the core may be called without an operator. Tracers, function transforms, modes, profilers and subclasses of
    tensors want to see one.
    """
    return (
        all(type(tensor) in _PLAIN for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_torch_function_mode_enabled()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and not torch._C._autograd._profiler_enabled()
        and forward_ad._current_level < 0
    )


def _join_torchs_team() -> None:
    """Let operations run on the threads of torch's OpenMP runtime; without one they have threads of their own.

    Threads of their own would wait for cores on which OpenMP's go on spinning: see csrc/cpu/team.h.
    """
    try:
        # A symbol of a library is looked for in those that it needs too: in the runtime that torch itself uses.
        runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        runner = ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):  # another system, or a torch with other threads
        return
    _core.use_team(runner or 0)


_join_torchs_team()
