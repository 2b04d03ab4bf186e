"""Samplers of training paths behind one protocol: uniform, path filter, greedy pool, fair, tree search.

Every sampler is deterministic: what it draws is a function of its seed, its stream, the operation mask and how much was
drawn before, so that equal samplers on many ranks draw equal paths without talking, and a reloaded one goes on exactly.
Here is no scoring of paths on a supernet and no filter network: losses and scores are handed in.
"""

from greedynas_fast.sampling.chunked import ScoringEngine
from greedynas_fast.sampling.fair import FairSampler, group_size
from greedynas_fast.sampling.greedy_pool import GreedyPoolSampler, pool_probability
from greedynas_fast.sampling.mask import check_mask
from greedynas_fast.sampling.protocol import PathBatch, Sampler
from greedynas_fast.sampling.rejection import FilterSampler, RejectionError
from greedynas_fast.sampling.tree import TreeSampler
from greedynas_fast.sampling.uniform import UniformSampler

__all__ = [
    "FairSampler",
    "FilterSampler",
    "GreedyPoolSampler",
    "PathBatch",
    "RejectionError",
    "Sampler",
    "ScoringEngine",
    "TreeSampler",
    "UniformSampler",
    "check_mask",
    "group_size",
    "pool_probability",
]
