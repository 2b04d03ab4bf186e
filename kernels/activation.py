"""Activations and their slopes on float32 values, the kind a compile-time constant; not-a-number goes through."""

import triton
import triton.language as tl

IDENTITY = tl.constexpr(0)
RELU = tl.constexpr(1)
HARD_SWISH = tl.constexpr(2)
SILU = tl.constexpr(3)
RELU6 = tl.constexpr(4)


@triton.jit
def activate(z, KIND: tl.constexpr):
    """The activation of z."""
    if KIND == RELU:
        z = tl.where(z <= 0, 0.0, z)
    elif KIND == HARD_SWISH:
        z = tl.where(z <= -3, 0.0, tl.where(z >= 3, z, z * (z + 3) * (1 / 6)))
    elif KIND == SILU:
        z = z * tl.sigmoid(z)
    elif KIND == RELU6:
        z = tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))
    return z


@triton.jit
def slope(z, KIND: tl.constexpr):
    """The derivative of the activation at z; hard-swish has 0 at -3 and 1 at 3, as the compiled core has it."""
    if KIND == RELU:
        d = tl.where(z <= 0, 0.0, 1.0)
    elif KIND == HARD_SWISH:
        d = tl.where(z <= -3, 0.0, tl.where(z >= 3, 1.0, z * (1 / 3) + 0.5))
    elif KIND == SILU:
        s = tl.sigmoid(z)
        d = s * (1 + z * (1 - s))
    elif KIND == RELU6:
        d = tl.where(z <= 0, 0.0, tl.where(z >= 6, 0.0, 1.0))
    else:
        d = tl.full(z.shape, 1.0, tl.float32)
    return d
