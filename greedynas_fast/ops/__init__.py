"""Public stateless operations: checks, choice of the back end, autograd, shapes for tracing, FLOP formulas.

Importing this room registers the operations with torch; it is imported where layers are built, not with the package.
One file an operation (the op-masked ones: `<name>.py` and `<name>_*.py`); `bn_core`, `rows`, `library`, `ragged` and
`triton_kernels` are what they share. `direct` and what is laid out for it (`*_direct`, `conv_norm_act`,
`pooled_pointwise`, `head_loss`) run the same layers in training without operators around them, in tensors of `memory`;
`chain` runs several of them as one, and `watch` notices when they must be laid out anew.
"""

from .bn_act import bn_act, bn_statistics, combine_statistics
from .inverted_residual import Gate, Norm, inverted_residual
from .masked_gate import masked_gates, masked_squeeze
from .masked_norm_act import masked_moments, masked_norm_act, masked_scale_shift
from .masked_pointwise import masked_pointwise
from .memory import release_memory
from .mixconv import mixconv
from .pointwise import pointwise
from .ragged import Ragged
from .shuffle import channel_shuffle, shuffle_concat, shuffle_split
from .squeeze_excite import squeeze_excite

__all__ = [
    "Gate",
    "Norm",
    "Ragged",
    "bn_act",
    "bn_statistics",
    "channel_shuffle",
    "combine_statistics",
    "inverted_residual",
    "masked_gates",
    "masked_moments",
    "masked_norm_act",
    "masked_pointwise",
    "masked_scale_shift",
    "masked_squeeze",
    "mixconv",
    "pointwise",
    "release_memory",
    "shuffle_concat",
    "shuffle_split",
    "squeeze_excite",
]
