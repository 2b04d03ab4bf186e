"""The compiled core: addresses and sizes in, results written in place. Use `greedynas_fast.paths` and `.filter`."""

from collections.abc import Sequence
from typing import Any, TypedDict

BITS_PER_OPERATION: int
MAX_OPERATIONS: int
MAX_LAYERS: int
MAX_FILTER_WEIGHT: float
MIXCONV_MAX_KERNEL: int

class BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    cuda: bool
    cuda_architectures: tuple[str, ...]
    cpu_levels: tuple[str, ...]

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def cpu_isa_available(name: str) -> bool: ...
def num_threads() -> int: ...
def use_team(runner: int, number: int, /) -> None: ...
def has_team() -> bool: ...
def pack(paths: int, n: int, layers: int, keys: int) -> None: ...
def unpack(keys: int, n: int, layers: int, paths: int) -> None: ...
def propose(
    allowed: int, layers: int, max_operations: int, seed: int, stream: int, start: int, count: int, paths: int
) -> None: ...
def propose_at(
    allowed: int, layers: int, max_operations: int, seed: int, stream: int, numbers: int, count: int, paths: int
) -> None: ...
def sort_keys(keys: int, n: int) -> None: ...
def unique_keys(keys: int, n: int, unique: int, first: int, inverse: int) -> int: ...
def crossover(
    parents: int, pairs: int, layers: int, probability: float, seed: int, stream: int, start: int, children: int
) -> None: ...
def mutate(
    paths: int,
    n: int,
    allowed: int,
    layers: int,
    max_operations: int,
    probability: float,
    seed: int,
    stream: int,
    start: int,
    mutated: int,
) -> None: ...

class KeySet:
    def __init__(self) -> None: ...
    def insert(self, keys: int, n: int, fresh: int) -> int: ...
    def contains(self, keys: int, n: int, found: int) -> None: ...
    def size(self) -> int: ...
    def export_keys(self, out: int, capacity: int) -> int: ...

class FilterModel:
    def __init__(
        self, num_ops: Sequence[int], operations: int, hidden: int, precision: str, parameters: Sequence[int]
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    def score(self, paths: int, n: int, threads: int, log_weak: int) -> None: ...
    def score_keys(self, keys: int, n: int, threads: int, log_weak: int) -> None: ...
    def reject(
        self,
        allowed: int,
        seed: int,
        stream: int,
        start: int,
        wanted: int,
        limit: int,
        threshold: float,
        want_fallbacks: bool,
        threads: int,
        screen: FilterModel | None = None,
        band: float = 0.0,
    ) -> tuple[bytes, bytes, int]: ...

class MixconvCall:
    def __init__(
        self,
        bf16: bool,
        weight_bf16: bool,
        batch_height_width: tuple[int, int, int],
        stride: int,
        same_upper: bool,
        groups: Sequence[tuple[int, int, int]],
        x: tuple[int, int, int, int],
        activation: int,
        scale: int,
        shift: int,
    ) -> None: ...
    def forward(self, y: tuple[int, int, int, int], stats: int, threads: int) -> None: ...
    def backward(
        self,
        grad: tuple[int, int, int, int],
        stats_grad: int,
        y: tuple[int, int, int, int],
        x_grad: tuple[int, int, int, int],
        weight_grads: Sequence[int],
        norm_grad: int,
        threads: int,
    ) -> None: ...

def bn_moments(rows: int, channels: int, bf16: bool, x: int, x_stride: int, moments: int, threads: int) -> None: ...
def bn_update(
    rows: int, channels: int, moments: int, share: float, running_mean: int, running_var: int, counter: int = 0
) -> None: ...

class BnAct:
    def __init__(
        self,
        rows: int,
        channels: int,
        bf16: bool,
        activation: int,
        residual: bool,
        moments: int,
        weight: int,
        bias: int,
        eps: float,
        threads: int,
    ) -> None: ...
    def forward(
        self,
        batch_statistics: bool,
        x: int,
        x_stride: int,
        residual: int,
        residual_stride: int,
        y: int,
    ) -> None: ...
    def backward(
        self,
        batch_statistics: bool,
        grad: int,
        grad_stride: int,
        x: int,
        x_stride: int,
        residual: int,
        residual_stride: int,
        grad_x: int,
        grad_residual: int,
        grad_weight: int,
        grad_bias: int,
    ) -> None: ...
    def affine(self, scale_shift: int) -> None: ...
    def through_moments(
        self,
        batch_statistics: bool,
        x: int,
        x_stride: int,
        grad_scale_shift: int,
        grad: int,
        grad_weight: int,
        grad_bias: int,
    ) -> None: ...

class Pointwise:
    def __init__(
        self,
        rows: int,
        in_channels: int,
        out_channels: int,
        x: int,
        x_stride: int,
        prologue: int,
        scale_shift: int,
        gates: int,
        pixels: int,
        weight: int,
        threads: int,
        groups: int,
        bf16: bool,
    ) -> None: ...
    def forward(self, y: int, moments: int) -> None: ...
    def backward(
        self,
        grad: int,
        grad_stride: int,
        y: int,
        moments: int,
        norm_weight: int,
        eps: float,
        norm_grads: int,
        scaled: bool,
        add: int,
        add_stride: int,
        grad_x: int,
        grad_scale_shift: int,
        grad_weight: int,
    ) -> None: ...

class TensorForm:
    def __init__(self, shape: Sequence[int], strides: Sequence[int], bf16: bool = False) -> None: ...
    def empty(self) -> object: ...

def memory_use() -> tuple[int, int]: ...
def release_memory() -> None: ...

class InvertedResidual:
    def __init__(
        self,
        sizes: Sequence[int],
        expand: Sequence[int],
        project: Sequence[int],
        depthwise: Sequence[tuple[int, int, int]],
        norms: Sequence[tuple[int, int, float]],
        gate: Sequence[int],
        gate_width: int,
        codes: Sequence[int],
        flags: Sequence[bool],
        groups: tuple[int, int],
        threads: int,
    ) -> None: ...
    def forward(self, x: tuple[int, int], moments: Sequence[int], kept: Sequence[int], y: int) -> None: ...
    def backward(
        self,
        x: tuple[int, int],
        moments: Sequence[int],
        kept: Sequence[int],
        grad: tuple[int, int],
        grad_x: int,
        gradients: Sequence[int],
        depthwise: Sequence[int],
        parts: Sequence[int],
    ) -> None: ...

class LinkLayout:
    def __init__(
        self,
        offsets: Sequence[int],
        kept_floats: int,
        running: Sequence[tuple[int, int, int, float, int, int, int]],
        counts: Sequence[int],
        parameters: Sequence[int],
    ) -> None: ...

class Link: ...

class InvertedResidualLink(Link):
    def __init__(self, layout: LinkLayout, block: InvertedResidual, present: Sequence[int]) -> None: ...

class ConvNormActLink(Link):
    def __init__(self, layout: LinkLayout, layer: ConvNormAct) -> None: ...

class HeadLossLink(Link):
    def __init__(self, layout: LinkLayout, pooling: PooledPointwise, loss: ClassifierLoss) -> None: ...

class Chain:
    def __init__(self, links: Sequence[Link]) -> None: ...
    def forward(self, x: tuple[int, int], targets: tuple[int, float, int, float, int] | None, y: int) -> None: ...
    def sums_at(self, begin: int, end: int, distance: int) -> bool: ...
    def backward(self, x: tuple[int, int], grad: tuple[int, int], grad_x: int, sums: Sequence[int]) -> None: ...

class ClassifierLoss:
    def __init__(self, sizes: tuple[int, int, int], weight: int, bias: int, threads: int) -> None: ...
    def find_bad_label(self, labels: int) -> int: ...
    def forward(
        self, labels: int, smoothing: float, mask: int, scale: float, kept: Sequence[int], loss: int, correct: int
    ) -> None: ...
    def backward(self, grad: int, kept: Sequence[int], gradients: Sequence[int]) -> None: ...

class ConvNormAct:
    def __init__(
        self,
        sizes: Sequence[int],
        weight: int,
        norm: tuple[int, int, float],
        activation: int,
        threads: int,
        bf16: bool,
    ) -> None: ...
    def forward(self, x: int, moments: int, z: int, y: int) -> None: ...
    def backward(self, x: int, moments: int, z: int, grad: tuple[int, int], gradients: Sequence[int]) -> None: ...

class PooledPointwise:
    def __init__(
        self,
        sizes: Sequence[int],
        weight: int,
        norm: tuple[int, int, float],
        activation: int,
        threads: int,
        bf16: bool,
    ) -> None: ...
    def forward(self, x: tuple[int, int], moments: int, z: int, pooled: int) -> None: ...
    def backward(self, x: tuple[int, int], moments: int, z: int, grad: int, gradients: Sequence[int]) -> None: ...

class Recurrence:
    def __init__(
        self,
        paths: int,
        operations: int,
        hidden: int,
        share: float,
        directions: Sequence[tuple[int, int, int, Sequence[tuple[int, int, int, int]]]],
        threads: int,
    ) -> None: ...
    def forward(self, states: int) -> None: ...
    def backward(self, grad: int, gradients: Sequence[tuple[int, int]]) -> None: ...

class SqueezeExcite:
    def __init__(
        self, images: int, pixels: int, channels: int, bf16: bool, prologue: int, scale: int, shift: int, threads: int
    ) -> None: ...
    def squeeze(self, x: int, x_stride: int, means: int) -> None: ...
    def excite(self, x: int, x_stride: int, gates: int, y: int) -> None: ...
    def excite_backward(self, grad: int, grad_stride: int, x: int, x_stride: int, grad_gates: int) -> None: ...
    def squeeze_backward(
        self,
        grad: int,
        grad_stride: int,
        x: int,
        x_stride: int,
        gates: int,
        grad_means: int,
        grad_x: int,
        grad_scale: int,
        grad_shift: int,
    ) -> None: ...

def sgd_update(
    blocks: int,
    count: int,
    parameters: int,
    gradients: int,
    momentum_buffer: int,
    ema: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    ema_decay: float,
    gradient_scale: float,
    nesterov: bool,
    zero_gradients: bool,
    threads: int,
) -> None: ...
def unchanged(entries: list[Any], sizes: list[Any], types: list[Any], places: list[Any]) -> bool: ...
def add_arrays(sums: Sequence[int], summands: Sequence[int], counts: Sequence[int]) -> None: ...
def sum_of_squares(blocks: int, count: int, gradients: int, threads: int) -> float: ...
def shuffle_split(
    rows: int, half: int, element_bytes: int, x: int, x_stride: int, kept: int, moved: int, threads: int
) -> None: ...
def shuffle_merge(
    rows: int,
    half: int,
    element_bytes: int,
    kept: int,
    kept_stride: int,
    moved: int,
    moved_stride: int,
    x: int,
    threads: int,
) -> None: ...

# The rest only in a build with CUDA. `device` is an index, `stream` a cudaStream_t of that device, `shape` (layers,
# operations, hidden), `parameters` addresses of tables, recurrent, fc1 weight and bias, fc2 weight and bias. Addresses
# are device memory but `allowed`, `num_ops` and `pinned_host`.
CUDA_REJECTION_HOST_BYTES: int

def cuda_reason_against(device: int) -> str: ...
def cuda_propose(
    device: int,
    stream: int,
    allowed: int,
    layers: int,
    max_operations: int,
    seed: int,
    stream_number: int,
    start: int,
    count: int,
    paths: int,
    /,
) -> None: ...
def cuda_pack(device: int, stream: int, paths: int, n: int, layers: int, keys: int, first_bad: int, /) -> None: ...
def cuda_unpack(device: int, stream: int, keys: int, n: int, layers: int, paths: int, first_bad: int, /) -> None: ...
def cuda_sort_workspace_bytes(device: int, n: int, /) -> int: ...
def cuda_sort_keys(device: int, stream: int, keys: int, n: int, ordered: int, workspace: int, /) -> None: ...
def cuda_unique_workspace_bytes(device: int, n: int, /) -> int: ...
def cuda_unique_keys(
    device: int, stream: int, ordered: int, n: int, unique: int, count: int, workspace: int, /
) -> None: ...
def cuda_find_keys(
    device: int, stream: int, ordered: int, n: int, queries: int, num_queries: int, found: int, /
) -> None: ...
def cuda_weights_bytes(shape: list[int], bf16: bool, /) -> int: ...
def cuda_prepare(
    device: int,
    stream: int,
    shape: list[int],
    bf16: bool,
    num_ops: list[int],
    parameters: list[int],
    weights: int,
    /,
) -> None: ...
def cuda_score_workspace_bytes(shape: list[int], n: int, /) -> int: ...
def cuda_score(
    device: int,
    stream: int,
    shape: list[int],
    bf16: bool,
    weights: int,
    paths: int,
    keys: int,
    n: int,
    log_weak: int,
    status: int,
    workspace: int,
    /,
) -> None: ...
def cuda_rejection_workspace_bytes(device: int, shape: list[int], chunk: int, /) -> int: ...
def cuda_reject(
    device: int,
    stream: int,
    shape: list[int],
    bf16: bool,
    weights: int,
    allowed: int,
    seed: int,
    stream_number: int,
    start: int,
    wanted: int,
    limit: int,
    threshold: float,
    chunk: int,
    accepted: int,
    workspace: int,
    pinned_host: int,
    /,
) -> tuple[int, int]: ...
def cuda_fallback_workspace_bytes(device: int, shape: list[int], chunk: int, count: int, /) -> int: ...
def cuda_lowest_rejected(
    device: int,
    stream: int,
    shape: list[int],
    bf16: bool,
    weights: int,
    allowed: int,
    seed: int,
    stream_number: int,
    start: int,
    limit: int,
    threshold: float,
    chunk: int,
    count: int,
    numbers: int,
    workspace: int,
    /,
) -> None: ...

# Fused layers. `storage` is 0 for float32, 1 for bf16, 2 for fp16; a tensor is (address, elements between images, rows,
# pixels).
class CudaMixconv:
    def __init__(
        self,
        storage: int,
        weight_storage: int,
        batch_height_width: tuple[int, int, int],
        stride: int,
        same_upper: bool,
        groups: list[tuple[int, int, int]],
        x: tuple[int, int, int, int],
        activation: int,
        scale: int,
        shift: int,
    ) -> None: ...
    def workspace_bytes(self) -> int: ...
    def forward(self, device: int, stream: int, y: tuple[int, int, int, int], stats: int, workspace: int) -> None: ...
    def backward(
        self,
        device: int,
        stream: int,
        grad: tuple[int, int, int, int],
        stats_grad: int,
        y: tuple[int, int, int, int],
        x_grad: tuple[int, int, int, int],
        weight_grads: list[int],
        norm_grad: int,
        workspace: int,
    ) -> None: ...

def cuda_bn_workspace_floats(rows: int, channels: int) -> int: ...
def cuda_bn_moments(
    device: int,
    stream: int,
    rows: int,
    channels: int,
    storage: int,
    x: int,
    x_stride: int,
    workspace: int,
    moments: int,
) -> None: ...
def cuda_bn_update(
    device: int,
    stream: int,
    rows: int,
    channels: int,
    moments: int,
    share: float,
    running_mean: int,
    running_var: int,
) -> None: ...

class CudaBnAct:
    def __init__(
        self,
        rows: int,
        channels: int,
        storage: int,
        activation: int,
        residual: bool,
        moments: int,
        weight: int,
        bias: int,
        eps: float,
    ) -> None: ...
    def forward(
        self, device: int, stream: int, x: int, x_stride: int, residual: int, residual_stride: int, y: int
    ) -> None: ...
    def backward(
        self,
        device: int,
        stream: int,
        batch_statistics: bool,
        grad: int,
        grad_stride: int,
        x: int,
        x_stride: int,
        residual: int,
        residual_stride: int,
        workspace: int,
        grad_x: int,
        grad_residual: int,
        grad_weight: int,
        grad_bias: int,
    ) -> None: ...
    def affine(self, device: int, stream: int, scale_shift: int) -> None: ...
    def through_moments(
        self,
        device: int,
        stream: int,
        batch_statistics: bool,
        x: int,
        x_stride: int,
        grad_scale_shift: int,
        workspace: int,
        grad: int,
        grad_weight: int,
        grad_bias: int,
    ) -> None: ...

class CudaSqueezeExcite:
    def __init__(
        self, images: int, pixels: int, channels: int, storage: int, prologue: int, scale: int, shift: int
    ) -> None: ...
    def workspace_floats(self) -> int: ...
    def squeeze(self, device: int, stream: int, x: int, x_stride: int, workspace: int, means: int) -> None: ...
    def excite(self, device: int, stream: int, x: int, x_stride: int, gates: int, y: int) -> None: ...
    def excite_backward(
        self,
        device: int,
        stream: int,
        grad: int,
        grad_stride: int,
        x: int,
        x_stride: int,
        workspace: int,
        grad_gates: int,
    ) -> None: ...
    def squeeze_backward(
        self,
        device: int,
        stream: int,
        grad: int,
        grad_stride: int,
        x: int,
        x_stride: int,
        gates: int,
        grad_means: int,
        workspace: int,
        grad_x: int,
        grad_scale: int,
        grad_shift: int,
    ) -> None: ...
