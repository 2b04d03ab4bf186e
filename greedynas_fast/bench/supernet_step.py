"""`bench supernet_step`: steps of supernet training (forward, backward, update), fused and as torch's layers.

One path of mean cost of `mb-se-mix` at 224 and batch 8, and twenty random paths of `sample`; one thread, float32, and
bf16 by autocast, where torch's layers in float32 are a peer too: they may be faster. The update is the parameter
bank's in all versions, and fused layers add to its gradients themselves, as in training. Dropout is off, so that all of
them compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greedynas_fast import paths, spaces
from greedynas_fast.nn import use_backend
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.supernet import BankSGD, ParameterBank, Supernet, extract

from .codec import core_threads
from .timing import Budget, torch_threads
from .training import FUSED, REFERENCE_LAST, VERSIONS, Results, Version, distance, refuse, time_rows

Paths = npt.NDArray[np.uint8]  # [n, L]

SEED, STREAM = 0, 0
MEAN_OF = 1000  # random paths
LEARNING_RATE = 1e-3  # small: the steps of a measurement are many, and their images always the same
# Of `training.distance`: rounding grows through dozens of layers. Of `mb-se-mix` torch's own float32 is 1e-2 away, its
# bf16 0.48, the fused layers' bf16 0.36.
TOLERANCES = {torch.float32: 5e-2, torch.bfloat16: 0.6}


class Setting(NamedTuple):
    """What is trained.

    Attributes:
        space: its name.
        batch: images a step.
        num_paths: random paths, one step each; None: one path of mean cost.
        dtype: of activations, float32 or bf16.
    """

    space: str
    batch: int
    num_paths: int | None
    dtype: torch.dtype = torch.float32

    def versions(self) -> dict[str, Version]:
        """What takes part, by name."""
        versions = {name: version._replace(dtype=self.dtype) for name, version in VERSIONS.items()}
        if self.dtype is not torch.float32:
            versions[f"{REFERENCE_LAST}, float32"] = VERSIONS[REFERENCE_LAST]
        return versions


def _in_both_types(*settings: Setting) -> tuple[Setting, ...]:
    return (*settings, *(setting._replace(dtype=torch.bfloat16) for setting in settings))


SETTINGS = _in_both_types(Setting("mb-se-mix", 8, None), Setting("sample", 32, 20))
QUICK_SETTINGS = _in_both_types(Setting("mb-se-mix", 8, None), Setting("sample", 32, 5))
_FEW_REPEATS = 3  # up to this many rounds a run is a quick one


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `supernet_step.<space>` and, in bf16, `supernet_step.<space>.bf16`.

    The loss, all gradients and the running statistics are compared first.

    Raises:
        RuntimeError: a version and the float64 reference disagree.
    """
    rows = []
    with torch_threads(1), core_threads(1):
        for setting in QUICK_SETTINGS if budget.repeats <= _FEW_REPEATS else SETTINGS:
            rows += _compare(setting, budget)
    return rows


def mean_path(space: SearchSpace) -> Paths:
    """The path, [1, L], whose MACs are nearest to the mean of `MEAN_OF` random ones; one of these, always the same."""
    batch = paths.propose(space.allowed, SEED, STREAM, 0, MEAN_OF)
    macs = space.costs(batch)[1].astype(np.float64)
    nearest = int(np.abs(macs - macs.mean()).argmin())
    return batch[nearest : nearest + 1]


class _Trainer:
    """A supernet in one version, with images to train it on."""

    def __init__(self, space: SearchSpace, version: Version, batch: int) -> None:
        self._dtype = version.dtype
        self.net = version.prepare(Supernet(space, SEED).train())
        for module in self.net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.bank = ParameterBank(self.net)
        self.optimizer = BankSGD(self.bank)
        generator = torch.Generator().manual_seed(SEED)
        shape = (batch, space.in_channels, space.resolution, space.resolution)
        self.images = torch.randn(shape, generator=generator).contiguous(memory_format=version.memory_format)
        self.labels = torch.randint(space.num_classes, (batch,), generator=generator)

    def backward(self, path: Paths) -> Tensor:
        of_bf16 = torch.autocast("cpu", torch.bfloat16, enabled=self._dtype is torch.bfloat16)
        with self.bank.adding(), of_bf16:
            loss, _ = self.net.loss(self.images, path, self.labels)
        torch.autograd.backward(loss)
        return loss.detach()

    def step(self, batch: Paths) -> None:
        """A step of each path."""
        for path in batch:
            self.backward(path)
            self.optimizer.step(path, LEARNING_RATE)

    def results(self, path: Paths) -> Results:
        """What a backward pass computes; no gradient is left."""
        loss = self.backward(path)
        found = _results(loss, nn.ModuleList([self.net.stem, *self.net.operations(path), self.net.head]))
        copied = {group: [tensor.clone() for tensor in tensors] for group, tensors in found.items()}
        self.bank.zero_grad(path)
        return copied

    def literal_results(self, path: Paths) -> Results:
        """The same by torch's layers in float64; nothing changes here."""
        network = extract(self.net, path).double()
        use_backend(network, "reference")
        loss = F.cross_entropy(network(self.images.double()), self.labels)
        torch.autograd.backward(loss)
        return _results(loss.detach(), nn.ModuleList([network.stem, *network.blocks, network.head]))


def _results(loss: Tensor, modules: nn.ModuleList) -> Results:
    grads = [parameter.grad for parameter in modules.parameters() if parameter.grad is not None]
    return {"result": [loss], "gradients": grads, "statistics": list(modules.buffers())}


def _compare(setting: Setting, budget: Budget) -> list[dict[str, Any]]:
    space = spaces.get(setting.space)
    batch = (
        mean_path(space)
        if setting.num_paths is None
        else paths.propose(space.allowed, SEED, STREAM, 0, setting.num_paths)
    )
    name = f"supernet_step.{setting.space}" + (".bf16" if setting.dtype is torch.bfloat16 else "")
    trainers = {provider: _Trainer(space, version, setting.batch) for provider, version in setting.versions().items()}
    errors = _errors(name, trainers, batch, TOLERANCES[setting.dtype])
    runs = {provider: partial(trainer.step, batch) for provider, trainer in trainers.items()}
    return time_rows(name, _note(space, setting, batch), setting.batch * len(batch), runs, errors, budget)


def _errors(name: str, trainers: Mapping[str, _Trainer], batch: Paths, tolerance: float) -> dict[str, float]:
    """The largest error of each version over the paths. Weights stay as they are, running statistics move.

    Raises:
        RuntimeError: a version and the float64 reference disagree.
    """
    errors = dict.fromkeys(trainers, 0.0)
    for path in batch:
        wanted = trainers[FUSED].literal_results(path)
        for provider, trainer in trainers.items():
            error = distance(trainer.results(path), wanted)
            refuse(name, provider, error, tolerance)
            errors[provider] = max(error, errors[provider])
    return errors


def _note(space: SearchSpace, setting: Setting, batch: Paths) -> str:
    macs = float(space.costs(batch)[1].mean()) / 1e6
    what = "path of mean cost" if setting.num_paths is None else f"{len(batch)} paths"
    return f"batch {setting.batch} at {space.resolution}, {what}, {macs:.0f} M MACs"
