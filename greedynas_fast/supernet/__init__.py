"""The network of all operations, its parameters in one buffer, and what is done with single paths of it.

Building, the forward pass by path, sub-network extraction, the parameter bank and its optimizer, batch-norm handling
and the scoring of paths live here. Which paths are trained or scored is decided elsewhere (`sampling`, `search`,
`stages`).
"""

from greedynas_fast.supernet.bank import Block, ParameterBank
from greedynas_fast.supernet.batchnorm import batch_statistics, recalibrate
from greedynas_fast.supernet.compaction import compact, load_checkpoint
from greedynas_fast.supernet.flat import FlatNetwork
from greedynas_fast.supernet.network import Network
from greedynas_fast.supernet.optimizer import BankSGD
from greedynas_fast.supernet.reduction import GradientReducer
from greedynas_fast.supernet.scoring import MemoryBound, PathScores, score_paths
from greedynas_fast.supernet.supernet import Supernet, extract
from greedynas_fast.supernet.together import features_together

__all__ = [
    "BankSGD",
    "Block",
    "FlatNetwork",
    "GradientReducer",
    "MemoryBound",
    "Network",
    "ParameterBank",
    "PathScores",
    "Supernet",
    "batch_statistics",
    "compact",
    "extract",
    "features_together",
    "load_checkpoint",
    "recalibrate",
    "score_paths",
]
