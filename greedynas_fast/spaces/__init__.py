"""Search spaces: operations, layers, paths as text, and exact parameter and MAC costs.

Files: `specs` (plain records), `operations` (names to records), `space` (`SearchSpace`), `validation`, `cost`,
`pathtext`, `canonical`, `serial` and `describe` (what `SearchSpace` is made of), `catalogue` (the built-in spaces),
`definition` and `section` (spaces in YAML, such as `sample.yaml`), `lookup` (`get`), `published` (known architectures).
No torch here: modules are built from these records in `greedynas_fast.nn`.
"""

from __future__ import annotations

from greedynas_fast.spaces.cost import Cost
from greedynas_fast.spaces.lookup import get, names
from greedynas_fast.spaces.operations import operation
from greedynas_fast.spaces.published import Published, path_text, published, published_names
from greedynas_fast.spaces.space import SearchSpace

__all__ = [
    "Cost",
    "Published",
    "SearchSpace",
    "get",
    "names",
    "operation",
    "path_text",
    "published",
    "published_names",
]
