"""What is compiled of the kernels of norm, activation, pooling and the optimizer: each with all its options on."""

from __future__ import annotations

from kernels_aot import ARCHITECTURES, Build

from greedynas_fast.ops.triton_kernels import load

norm_act, gate, sgd = load("norm_act"), load("gate"), load("sgd")

F32 = "*fp32"
VECTORS = ("scale_shift", "moments", "partials", "grad_moments", "grad_parameters", "pooled", "grad_pooled")
SIZES = ("total", "part_stride", "pixels", "groups", "num_tiles")
TILE = {"ALIGN": 8, "BLOCK_R": 32, "BLOCK_C": 64}
BACKWARD = TILE | {"BLOCK_R": 16}


def types(kernel: object, constants: dict[str, object], element: str) -> dict[str, str]:
    """The type of every argument that is no constant, by its name."""
    known = dict.fromkeys(VECTORS, F32) | dict.fromkeys(SIZES, "i32")
    known |= {"tiles": "*i32", "table": "*i64", "table_out": "*i64", "offsets": "*i64", "pools": "*i64", "eps": "fp32"}
    known |= dict.fromkeys(("x", "y", "residual", "grad_x", "grad_residual", "grad"), f"*{element}")
    known |= dict.fromkeys(("bank", "bank_grad", "result", "data", "momentum_buffer", "ema"), F32)
    known |= dict.fromkeys(("scale", "skip", "inverse_loss_scale"), F32) | {"partial": "*fp64"}
    known |= dict.fromkeys(("lr", "momentum", "weight_decay", "ema_decay", "ema_share", "clip_norm"), "fp32")
    return {name: known[name] for name in kernel.arg_names if name not in constants}  # type: ignore[attr-defined]


def build(name: str, kernel: object, element: str = "bf16", **constants: object) -> Build:
    """Kernels over float32 activations are compiled for sm_80 by the slow tests alone, to save time."""
    always = (90,) if element == "fp32" and "ACTIVATION" in constants else ARCHITECTURES
    return Build(name, kernel, types(kernel, constants, element), constants, always=always)


def elementwise_builds(element: str, act: int) -> list[Build]:
    """Kernels over activations of a type, with every option on."""
    tile, rows = TILE | {"ACTIVATION": act}, {"TILE_ROWS": 512}
    back = BACKWARD | {"ACTIVATION": act} | rows
    return [
        build(f"apply-{element}-{act}", norm_act.apply_kernel, element, **tile, **rows, RESIDUAL=True),
        build(
            f"apply_backward-{element}-{act}",
            norm_act.apply_backward_kernel,
            element,
            **(back | {"RESIDUAL": True, "GRAD_RESIDUAL": act != 0}),
        ),
        build(f"pool-{element}-{act}", gate.pool_kernel, element, **tile),
        build(f"pool_backward-{element}-{act}", gate.pool_backward_sums_kernel, element, **back),
        build(f"join-{element}-{act}", gate.join_gradients_kernel, element, **back, DIRECT=True, POOLS=True),
    ]


def fp32(name: str, kernel: object, **constants: object) -> Build:
    """A kernel over vectors: its `grad` is float32 too."""
    return build(name, kernel, "fp32", **constants)


JOINED = {"TILE_ROWS": 512, "BLOCK_T": 16, "BLOCK_C": 64}
SGD = ("HAS_MOMENTUM", "NESTEROV", "HAS_EMA", "HAS_SCALE", "HAS_SKIP", "ZERO_GRAD")
BUILDS = [
    *elementwise_builds("bf16", 2),
    *elementwise_builds("fp32", 3),
    elementwise_builds("fp32", 0)[1],
    elementwise_builds("fp16", 1)[1],
    build("moments-bf16", norm_act.moments_kernel, "bf16", **TILE, TILE_ROWS=512),
    build("moments-fp32", norm_act.moments_kernel, "fp32", **(TILE | {"ALIGN": 1}), TILE_ROWS=2048),
    fp32("finish_moments", norm_act.finish_moments_kernel, **JOINED),
    fp32("finish_sums", norm_act.finish_sums_kernel, **JOINED, ADD=True),
    fp32("scale_shift", norm_act.scale_shift_kernel, BLOCK_C=64),
    fp32("scale_shift_backward", norm_act.scale_shift_backward_kernel, BLOCK_C=64),
    fp32("parameter_gradient", norm_act.parameter_gradient_kernel, BLOCK_C=64),
    fp32("sgd-all", sgd.sgd_kernel, **dict.fromkeys(SGD, True), TILE=sgd.TILE),
    fp32("sgd-plain", sgd.sgd_kernel, **dict.fromkeys(SGD, False), TILE=sgd.TILE),
    fp32("squares", sgd.squares_kernel, TILE=sgd.TILE),
    fp32("control", sgd.control_kernel, HAS_LOSS_SCALE=True, CLIPS=True, CHUNK=1024),
    fp32("control-plain", sgd.control_kernel, HAS_LOSS_SCALE=False, CLIPS=False, CHUNK=1024),
]
