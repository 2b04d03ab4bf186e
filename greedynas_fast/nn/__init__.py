"""Blocks of the search spaces as plain PyTorch modules, built from the records in `greedynas_fast.spaces.specs`.

One file a block family; attribute names follow timm (`conv_pw`, `conv_dw`, `se.conv_reduce`, ..), so that a state dict
reads like that of a known model. All convolutions but those of squeeze-and-excitation have no bias and pad by
`kernel_size // 2`. Whole networks and supernets live in `greedynas_fast.supernet`, not here.

`backend` says which layers operations stand for; `fused_*` and `prepared` run them, and `in_turn` several as one.
"""

from greedynas_fast.nn.accelerate import accelerate
from greedynas_fast.nn.backend import Backend, use_backend, what_runs
from greedynas_fast.nn.bottleneck import Bottleneck
from greedynas_fast.nn.build import build_operation
from greedynas_fast.nn.dropout import BatchDropout
from greedynas_fast.nn.identity import ConvIdentity
from greedynas_fast.nn.in_turn import loss_in_turn, run_in_turn
from greedynas_fast.nn.initialise import initialise, materialise
from greedynas_fast.nn.inverted_residual import InvertedResidual, MixedConv
from greedynas_fast.nn.shuffle_unit import ShuffleUnit
from greedynas_fast.nn.squeeze_excite import SqueezeExcite
from greedynas_fast.nn.stem_head import Head, Stem
from greedynas_fast.nn.sync_norm import SyncBatchNorm2d, local_norms, synchronise_norms
from greedynas_fast.ops.shuffle import channel_shuffle

__all__ = [
    "Backend",
    "BatchDropout",
    "Bottleneck",
    "ConvIdentity",
    "Head",
    "InvertedResidual",
    "MixedConv",
    "ShuffleUnit",
    "SqueezeExcite",
    "Stem",
    "SyncBatchNorm2d",
    "accelerate",
    "build_operation",
    "channel_shuffle",
    "initialise",
    "local_norms",
    "loss_in_turn",
    "materialise",
    "run_in_turn",
    "synchronise_norms",
    "use_backend",
    "what_runs",
]
