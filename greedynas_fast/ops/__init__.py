"""Public stateless operations: checks, choice of the back end, autograd, shapes for tracing, FLOP formulas.

Importing this room registers the operations with torch; it is imported where layers are built, not with the package.
One file an operation; `bn_core`, `rows` and `library` are what they share.
"""

from .bn_act import bn_act, bn_statistics, combine_statistics
from .inverted_residual import Gate, Norm, inverted_residual
from .mixconv import mixconv
from .shuffle import channel_shuffle, shuffle_concat, shuffle_split
from .squeeze_excite import squeeze_excite

__all__ = [
    "Gate",
    "Norm",
    "bn_act",
    "bn_statistics",
    "channel_shuffle",
    "combine_statistics",
    "inverted_residual",
    "mixconv",
    "shuffle_concat",
    "shuffle_split",
    "squeeze_excite",
]
