"""Which blocks run as fused operations (`greedynas_fast.ops`) and which as torch's layers one after the other.

Every block is made of torch's own layers, which hold its parameters; fused or not, it computes the same function. The
choice is an attribute of each block, `use_backend` sets it. What is fused: float32 and bf16 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from greedynas_fast.errors import InputError
from greedynas_fast.nn.sync_norm import SyncBatchNorm2d
from greedynas_fast.ops.bn_act import bn_act
from greedynas_fast.ops.bn_core import update_op
from greedynas_fast.ops.direct import unwatched
from greedynas_fast.ops.mixconv import MAX_KERNEL, mixconv
from greedynas_fast.ops.rows import backend as backend_of
from greedynas_fast.ops.watch import Watch

Backend = Literal["auto", "fused", "reference"]

_FUSED_ACTIVATIONS = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.Hardswish: "hard_swish",
    nn.SiLU: "silu",
    nn.ReLU6: "relu6",
}


_OF_CONVOLUTION = (
    *("kernel_size", "stride", "padding", "dilation", "padding_mode"),
    *("groups", "in_channels", "out_channels"),
)
_OF_NORM = ("affine", "add_up")

# Two lists that `accelerated_*` add to, each where it knows the class.
# Convolutions that are padded as `same_upper` of `mixconv` says, whatever their `padding`.
SAME_UPPER: list[type[nn.Conv2d]] = []
# Batch norms that do nothing else.
BATCH_NORMS: list[type[nn.BatchNorm2d]] = [nn.BatchNorm2d]

_REMEMBERED = 4  # sets of layers a block: none asks about more, unless its layers are replaced


class Fusable(nn.Module):
    """A block that can run fused.

    Attributes:
        backend: `auto` fuses where that is possible, `fused` raises an error where it is not, `reference` never fuses.
    """

    backend: Backend = "auto"

    def fuses(self, x: Tensor, *layers: nn.Module) -> bool:
        """Whether this input is to be handled by fused operations; never while a graph is exported.

        Args:
            x: the block's input.
            layers: those that a fused operation stands for; none: all in the block. They are not called then, so one
                with hooks is not fused.

        Raises:
            InputError: `backend` is `fused`, and it is not possible.
        """
        if not self._may_fuse():
            return False
        obstacle = self._obstacle(x, layers)
        if obstacle is not None and self.backend == "fused":
            raise InputError(
                f"backend: no fused operation for {obstacle}; there are some for float32 and bfloat16 on the CPU, "
                "layers without hooks, plain batch norm, kernels up to 11 and strides 1 and 2. `auto` runs torch's "
                "layers elsewhere"
            )
        return obstacle is None

    def seen_fit(self, x: Tensor, *layers: nn.Module) -> LayersSeen | None:
        """What `fuses` saw, or would see, if it says yes; never where `unwatched` says no, and no error.

        It is the same object until something changes: a place for what is worked out from the layers.
        """
        if self.backend == "reference" or backend_of(x) != "core" or not unwatched(x):
            return None
        found = self.found(*layers)
        if found is None and self._obstacle(x, layers) is None:
            found = self.found(*layers)
        return found

    def _may_fuse(self) -> bool:
        return not (self.backend == "reference" or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export())

    def _obstacle(self, x: Tensor, layers: tuple[nn.Module, ...]) -> str | None:
        """What no operation handles, in words; what has been found to be fit is remembered."""
        if backend_of(x) != "core":
            return f"{x.dtype} on {x.device}"
        if not torch.compiler.is_compiling() and self.found(*layers) is not None:
            return None
        obstacle = next((str(layer) for layer in layers or _parts(self) if not self._stands_for(layer)), None)
        if obstacle is None and not torch.compiler.is_compiling():
            others = [item for item in self._seen().items() if item[0] != layers][1 - _REMEMBERED :]
            self.__dict__["_layers_seen"] = dict([*others, (layers, LayersSeen(self, layers))])
        return obstacle

    def _seen(self) -> dict[tuple[nn.Module, ...], LayersSeen]:
        """By the layers that `fuses` was asked about. Kept where torch does not look, for it would take time."""
        found: dict[tuple[nn.Module, ...], LayersSeen] = self.__dict__.get("_layers_seen", {})
        return found

    def found(self, *layers: nn.Module) -> LayersSeen | None:
        """What an earlier call of `fuses` or `seen_fit` found to be fit, if it is all the same now."""
        found = self._seen().get(layers)
        return found if found is not None and found.holds(self) else None

    def _stands_for(self, layer: nn.Module) -> bool:
        """Whether an operation can stand for this layer of the block. Hooks of the block itself are called anyway."""
        return (layer is self or not has_hooks(layer)) and has_operation(layer)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to these very layers: copies have their own."""
        return {name: value for name, value in self.__dict__.items() if name != "_layers_seen"}


class LayersSeen:
    """All that decides whether operations can stand for the layers of a block, as it was when they could.

    To look whether it has changed takes a tenth of the time that it takes to decide.

    Attributes:
        prepared: what a caller has worked out from these layers; None: nothing yet.
    """

    def __init__(self, block: nn.Module, layers: tuple[nn.Module, ...]) -> None:
        self.prepared: Any = None
        self._of_block = block._modules  # a replica of the block has others
        self._watch = watch = Watch()
        for part in layers or _parts(block):
            watch.type_of(part)
            watch.entries(part.__dict__, *_settings_of(part))
            if isinstance(part, nn.Conv2d | nn.Linear):
                watch.entries(part._parameters, "bias")
            if part._modules:
                watch.size(part._modules)
                watch.entries(part._modules, *part._modules)
            if part is not block:
                for hooks in _hooks(part):
                    watch.size(hooks)

    def prepare(self, make: Callable[[], Any]) -> Any:
        """What `make` works out from these layers, kept for the next call."""
        if self.prepared is None:
            self.prepared = make()
        return self.prepared

    def holds(self, block: nn.Module) -> bool:
        """Whether all is as it was."""
        return self._of_block is block._modules and self._watch.holds()


def _settings_of(layer: nn.Module) -> Sequence[str]:
    """The attributes that `has_operation` looks at."""
    if isinstance(layer, nn.Conv2d):
        return _OF_CONVOLUTION
    if isinstance(layer, _BatchNorm):
        return _OF_NORM
    return ()


def _hooks(layer: nn.Module) -> tuple[Any, ...]:
    return layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks


def has_hooks(layer: nn.Module) -> bool:
    """Whether a call of this layer calls something else too."""
    return any(_hooks(layer))


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """`module.modules()`, in any order: that takes longer than the rest of a small block."""
    waiting = [module]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [child for child in part._modules.values() if child is not None]


def use_backend(module: nn.Module, backend: Backend) -> None:
    """Set the back end of all blocks in `module`, itself included.

    Raises:
        InputError: an unknown name.
    """
    if backend not in get_args(Backend):
        raise InputError(f"backend: expected auto, fused or reference, got {backend!r}")
    for part in module.modules():
        if isinstance(part, Fusable):
            part.backend = backend


def what_runs(backend: Backend, device: torch.device) -> str:
    """What blocks of float32 do on a device, in words: `fused (compiled core)` or `torch's layers`."""
    fused = backend != "reference" and backend_of(torch.empty(0, device=device)) == "core"
    return "fused (compiled core)" if fused else "torch's layers"


def activation_name(module: nn.Module) -> str | None:
    """The name by which operations call this activation; None if they do not have it."""
    return _FUSED_ACTIVATIONS.get(type(module))


def name_of(activation: nn.Module) -> str:
    """The same for one that is known to have a name."""
    name = activation_name(activation)
    assert name is not None
    return name


def uses_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether this batch norm normalises by the statistics of the batch."""
    return norm.training or norm.running_mean is None


def norm_act(norm: nn.BatchNorm2d, act: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """act(norm(x)), or act(norm(x) + residual), as one operation, with the bookkeeping of running statistics.

    Args:
        norm: batch norm [C], whatever its flags.
        act: one that `activation_name` knows.
        x: [N, C, H, W].
        residual: of the shape of x.
    """
    tracked = not norm.training or norm.track_running_stats
    return bn_act(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean if tracked else None,
        norm.running_var if tracked else None,
        training=uses_batch(norm),
        momentum=_count_batch(norm) if norm.training else 0.0,
        eps=norm.eps,
        activation=name_of(act),
        residual=None if residual is None else residual.to(x.dtype),
    )


def update_running(norm: nn.BatchNorm2d, moments: Tensor, count: int) -> None:
    """Do what a batch norm in training does to its running statistics.

    Args:
        norm: in any mode; nothing happens if it does not track.
        moments: float32 [2, C]: means and biased variances of the batch.
        count: values a channel that they are of.
    """
    share = _count_batch(norm)
    if norm.running_mean is not None and norm.running_var is not None and norm.training and norm.track_running_stats:
        update_op(norm.running_mean, norm.running_var, moments, count, share)


def num_values(x: Tensor) -> int:
    """Values a channel of [N, C, H, W]."""
    return x.numel() // x.shape[1]


def running_moments(norm: nn.BatchNorm2d) -> Tensor | None:
    """The moments float32 [2, C] to normalise with; None if they are those of the batch."""
    if uses_batch(norm):
        return None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return torch.stack((norm.running_mean, norm.running_var)).float()


def is_fused(layer: nn.Module) -> bool:
    """Whether `run_layers` has an operation stand for this layer of a sequence."""
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    return grouped or type(layer) in BATCH_NORMS or activation_name(layer) is not None


def run_layers(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What `nn.Sequential` of the layers does.

    Depthwise convolutions are operations, and so are batch norms with the activation that follows.
    """
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if type(layer) in BATCH_NORMS:
            act = rest.pop(0) if rest and activation_name(rest[0]) is not None else nn.Identity()
            x = norm_act(cast("nn.BatchNorm2d", layer), act, x)
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            x = run_depthwise([layer], x)
        else:
            x = layer(x)
    return x


def run_depthwise(convs: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    """The depthwise convolutions of groups of channels as one `mixconv`, without their biases.

    Args:
        convs: of one stride and padding, which `is_mixconv` accepts.
        x: [N, C, H, W].
    """
    weights, kernels = [conv.weight for conv in convs], [conv.kernel_size[0] for conv in convs]
    return mixconv(x, weights, kernels, convs[0].stride[0], padding=padding_of(convs[0]))


def has_operation(layer: nn.Module) -> bool:
    """Whether there is an operation that computes this layer, of those that there are operations for."""
    if isinstance(layer, _BatchNorm):
        synchronised = isinstance(layer, SyncBatchNorm2d) and layer.add_up is not None
        return isinstance(layer, nn.BatchNorm2d) and layer.affine and not synchronised
    if isinstance(layer, nn.Linear):
        return type(layer) is nn.Linear and layer.bias is not None
    if not isinstance(layer, nn.Conv2d):
        return True
    if layer.groups == 1:
        return is_padded(layer) and layer.kernel_size == (1, 1) and layer.stride == (1, 1)
    return is_mixconv(layer) and layer.bias is None


def is_mixconv(layer: nn.Conv2d) -> bool:
    """Whether, but for a bias, this is the `mixconv` of one group."""
    return (
        is_padded(layer)
        and layer.groups == layer.in_channels == layer.out_channels
        and layer.kernel_size[0] <= MAX_KERNEL
        and layer.stride in ((1, 1), (2, 2))
    )


def is_plain_convolution(layer: nn.Conv2d) -> bool:
    """Whether this is `primitives.conv2d`: all channels of its input in each of its output, no bias."""
    alone = type(layer) is nn.Conv2d and layer.groups == 1 and layer.bias is None
    return alone and is_padded(layer) and layer.stride[0] == layer.stride[1]


def is_padded(layer: nn.Conv2d) -> bool:
    """Whether an odd square kernel is padded as `padding_of` says."""
    kernel = layer.kernel_size[0]
    square = layer.kernel_size == (kernel, kernel) and kernel % 2 == 1
    symmetric = layer.padding in ((kernel // 2, kernel // 2), "same") and layer.padding_mode == "zeros"
    return square and (symmetric or padding_of(layer) == "same_upper") and layer.dilation == (1, 1)


def padding_of(layer: nn.Conv2d) -> str:
    """The name that `mixconv` has for the padding of a convolution that `is_padded` accepts."""
    return "same_upper" if isinstance(layer, tuple(SAME_UPPER)) else "symmetric"


def _count_batch(norm: nn.BatchNorm2d) -> float:
    """Count a batch, and say which share of the running statistics it gets."""
    if not (norm.training and norm.track_running_stats):
        return 0.0
    counter = cast("Any", norm.num_batches_tracked)
    if counter is not None:
        counter.add_(1)
        if norm.momentum is None:
            return 1.0 / float(counter)
    return 0.0 if norm.momentum is None else norm.momentum
