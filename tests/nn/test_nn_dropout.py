"""Dropout of a part of a batch against dropout of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from greedynas_fast.nn.dropout import BatchDropout


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.9])
def test_parts_get_what_the_whole_would_get(probability: float) -> None:
    x = torch.randn(7, 33)
    torch.manual_seed(5)
    wanted = nn.Dropout(probability)(x)
    drop = BatchDropout(probability)
    torch.manual_seed(5)
    assert torch.equal(drop(x), wanted)
    rest = [slice(0, 3), slice(3, 4), slice(4, 7)]
    parts = []
    for part in rest:
        torch.manual_seed(5)
        drop.part = (part.start, len(x))
        parts.append(drop(x[part]))
    # The mask is multiplied by 1 / (1 - p) before it meets x, which may round once more.
    torch.testing.assert_close(torch.cat(parts), wanted, rtol=2e-7, atol=0)
    assert torch.equal(drop.eval()(x), x)
