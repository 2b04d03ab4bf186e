"""What can be trained, measured and exported alone: the network of a path, or one of timm's by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from greedynas_fast.errors import InputError
from greedynas_fast.spaces import Cost, SearchSpace
from greedynas_fast.supernet import Network


class Architecture(Protocol):
    """A network without its weights."""

    @property
    def key(self) -> str:
        """A text that tells it from every other architecture of a run."""

    @property
    def text(self) -> str:
        """Its name for people."""

    @property
    def resolution(self) -> int:
        """Pixels a side of its images."""

    def at(self, resolution: int) -> Architecture:
        """The same network for images of another size.

        Raises:
            InputError: it cannot take images of this size.
        """

    def build(self, seed: int = 0, dropout: float | None = None) -> nn.Module:
        """The network on the CPU, in training mode.

        Args:
            seed: of the starting weights, which depend on nothing else.
            dropout: before the classifier; None keeps the architecture's own.
        """

    def cost(self) -> Cost:
        """Parameters, and multiply-accumulates for one image of its resolution."""

    def facts(self) -> dict[str, Any]:
        """The entries of `config.json` from which `model_files.architecture` makes it again."""


@dataclass(frozen=True)
class PathNetwork:
    """The network of one path.

    Attributes:
        space: the search space, at the resolution of the images.
        path: uint8 [L], a path of it.
    """

    space: SearchSpace
    path: npt.NDArray[np.uint8]

    @property
    def key(self) -> str:
        """See `Architecture`."""
        return self.space.format(self.path, "digits")

    @property
    def text(self) -> str:
        """See `Architecture`."""
        return self.space.format(self.path)

    @property
    def resolution(self) -> int:
        """See `Architecture`."""
        return self.space.resolution

    def at(self, resolution: int) -> PathNetwork:
        """See `Architecture`."""
        try:
            return replace(self, space=replace(self.space, resolution=resolution))
        except InputError as error:
            raise InputError(str(error).removeprefix("resolution: ")) from None

    def build(self, seed: int = 0, dropout: float | None = None) -> Network:
        """See `Architecture`."""
        network = Network(self.space, self.path, seed=seed)
        if dropout is not None:
            network.head.dropout.p = dropout
        return network

    def cost(self) -> Cost:
        """See `Architecture`."""
        return self.space.cost(self.path)

    def facts(self) -> dict[str, Any]:
        """See `Architecture`."""
        return {
            "architecture": self.space.name,
            "path": self.key,
            "names": [self.space.ops[layer][op] for layer, op in enumerate(self.path)],
            "num_classes": self.space.num_classes,
            "input_size": [self.space.in_channels, self.resolution, self.resolution],
            "space": self.space.to_dict(),
        }


@dataclass(frozen=True)
class TimmModel:
    """A network that timm makes by name, without pretrained weights; a reference beside searched ones.

    Attributes:
        name: as in `timm.list_models()`.
        num_classes: outputs of the classifier.
        in_channels: of the images.
        resolution: pixels a side of the images.

    Raises:
        InputError: timm has no model of this name; the message says the nearest that it has.
    """

    name: str
    num_classes: int
    in_channels: int
    resolution: int

    def __post_init__(self) -> None:
        check_timm_name(self.name)

    @property
    def key(self) -> str:
        """See `Architecture`."""
        return f"timm:{self.name}"

    @property
    def text(self) -> str:
        """See `Architecture`."""
        return f"{self.name} (timm)"

    def at(self, resolution: int) -> TimmModel:
        """See `Architecture`."""
        other = replace(self, resolution=resolution)
        other.cost()  # which runs it on an image of this size
        return other

    def build(self, seed: int = 0, dropout: float | None = None) -> nn.Module:
        """See `Architecture`."""
        # timm's initialisation draws from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._create(0.0 if dropout is None else dropout)

    def _create(self, dropout: float) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(
            self.name, pretrained=False, num_classes=self.num_classes, in_chans=self.in_channels, drop_rate=dropout
        )
        return model

    def cost(self) -> Cost:
        """As for paths: convolutions and linear layers count, normalisation, activations and pooling do not.

        Raises:
            InputError: the model does not turn an image of this size into one row of logits.
        """
        try:
            return self._count("meta")
        except Exception:  # some models compute with values while they are made, which the meta device has none of
            try:
                return self._count("cpu")
            except Exception as error:
                reason = " ".join(str(error).split()).rstrip(".")
                shape = f"{self.in_channels} x {self.resolution} x {self.resolution}"
                raise InputError(
                    f"timm's {self.name} does not classify images of {shape} pixels ({reason[:200]})."
                ) from error

    def _count(self, device: str) -> Cost:
        from torch.utils.flop_counter import FlopCounterMode

        with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
            model = self._create(0.0).eval()
            counter = FlopCounterMode(display=False)
            with counter:
                logits = model(torch.zeros(1, self.in_channels, self.resolution, self.resolution))
        if not isinstance(logits, torch.Tensor) or logits.shape != (1, self.num_classes):
            raise ValueError(f"expected logits of {self.num_classes} classes")
        params = sum(parameter.numel() for parameter in model.parameters())
        return Cost(params, counter.get_total_flops() // 2)

    def facts(self) -> dict[str, Any]:
        """See `Architecture`."""
        import timm

        return {
            "architecture": self.name,
            "library": "timm",
            "library_version": timm.__version__,
            "num_classes": self.num_classes,
            "input_size": [self.in_channels, self.resolution, self.resolution],
        }


def check_timm_name(name: str) -> None:
    """Whether timm has a model of this name.

    Raises:
        InputError: it has none; the message says the nearest that it has.
    """
    import timm

    known = timm.list_models()
    if name not in known:
        (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise InputError(f"unknown model {name!r}: the nearest that timm {timm.__version__} has is {near!r}.")
