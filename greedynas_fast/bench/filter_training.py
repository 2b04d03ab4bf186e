"""`bench filter_training`: paths a second through the path filter's network, forward and backward.

The sample's filter on all of its paths at once, and one of MB-SE as in the paper on minibatches; one thread, float32.
The peers are the same network by torch's operators with the input projection as a table, and of torch's own modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from greedynas_fast import paths, spaces
from greedynas_fast.filter import PathFilter

from .codec import core_threads
from .peers import LiteralFilter
from .timing import Budget, alternate_steps, core_isa, fastest, make_row, rate_values, torch_isa, torch_threads
from .training import distance, refuse

CORE, TABLE, LITERAL = "core", "torch with table", "nn.LSTM"
TOLERANCE = 1e-3  # of `training.distance`: float32 against float64


class Setting(NamedTuple):
    """What is trained.

    Attributes:
        space: its name.
        hidden: units of the network.
        paths: of a minibatch.
    """

    space: str
    hidden: int
    paths: int


SETTINGS = (Setting("sample", 64, 90), Setting("mb-se", 128, 512))


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `filter_training.<space>`; log Phi and all gradients are compared first.

    Raises:
        RuntimeError: a version and the float64 reference disagree.
    """
    with torch_threads(1), core_threads(1):
        return [row for setting in SETTINGS for row in _compare(setting, budget)]


def _compare(setting: Setting, budget: Budget) -> list[dict[str, Any]]:
    name = f"filter_training.{setting.space}"
    space = spaces.get(setting.space)
    net = PathFilter(space, setting.hidden, seed=0)
    batch = torch.from_numpy(paths.propose(space.allowed, seed=1, stream=0, start=0, count=setting.paths)).long()
    literal = LiteralFilter(net)
    versions: dict[str, Callable[[], list[Tensor]]] = {
        CORE: lambda: _step(net, net(batch)[:, 1]),
        TABLE: lambda: _step(net, net.by_torch(batch)[:, 1]),
        LITERAL: lambda: _step(literal, literal(batch)),
    }
    exact = LiteralFilter(PathFilter(space, setting.hidden, seed=0), torch.float64)
    wanted = _results(_step(exact, exact(batch)))
    errors = {}
    for provider, step in versions.items():
        errors[provider] = distance(_results(step()), wanted)
        refuse(name, provider, errors[provider], TOLERANCE)
    rates = alternate_steps(versions, setting.paths, budget)
    best = fastest(rates, [TABLE, LITERAL])
    return [
        make_row(
            name,
            provider,
            core_isa() if provider == CORE else torch_isa(),
            1,
            paths=setting.paths,
            max_error=errors[provider],
            note=f"{len(space.num_ops)} layers, {setting.hidden} units, {setting.paths} paths",
            **rate_values(rates, provider, best),
        )
        for provider in versions
    ]


def _step(module: nn.Module, log_weak: Tensor) -> list[Tensor]:
    """Log Phi and the gradients of the parameters, by name, for the mean of log Phi times different weights."""
    weights = torch.linspace(-1, 1, len(log_weak), dtype=log_weak.dtype)
    named = sorted(module.named_parameters())
    gradients = torch.autograd.grad((log_weak * weights).mean(), [parameter for _, parameter in named])
    return [log_weak.detach(), *gradients]


def _results(found: list[Tensor]) -> dict[str, list[Tensor]]:
    log_weak, *gradients = found
    # The embedding is a table [L, N, H] or its rows.
    return {"result": [log_weak], "gradients": [gradient.flatten() for gradient in gradients]}
