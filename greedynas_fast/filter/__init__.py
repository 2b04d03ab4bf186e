"""The path filter: its network, PU losses, training, decisions, steadiness and operation shrinkage (Sec. 4).

Everything here works on plain paths (integer arrays [n, L]) and knows neither supernets nor data sets; sampling with a
filter lives in `greedynas_fast.sampling`.
"""

from .agreement import Agreement, agreement
from .collapse import CollapseCheck, check_collapse
from .engine import Decisions, FilterEngine
from .metrics import PrecisionRecall, auroc, average_ranks, precision_recall
from .network import PathFilter
from .rejection import Rejection, RejectionRequest
from .shrinkage import Merge, shrink_operations, similarity_matrices
from .theory import confidence, weak_confidence
from .threshold import find_threshold
from .trained import FilterReport, TrainedFilter
from .training import FilterConfig, train_filter

__all__ = [
    "Agreement",
    "CollapseCheck",
    "Decisions",
    "FilterConfig",
    "FilterEngine",
    "FilterReport",
    "Merge",
    "PathFilter",
    "PrecisionRecall",
    "Rejection",
    "RejectionRequest",
    "TrainedFilter",
    "agreement",
    "auroc",
    "average_ranks",
    "check_collapse",
    "confidence",
    "find_threshold",
    "precision_recall",
    "shrink_operations",
    "similarity_matrices",
    "train_filter",
    "weak_confidence",
]
