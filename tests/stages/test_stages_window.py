"""Means over a window of steps."""

from __future__ import annotations

import pytest
import torch

from greedynas_fast.stages.window import Window


def step(loss: float, correct: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(loss), torch.tensor(correct)


def test_means_weigh_images() -> None:
    window = Window()
    assert window.means() == {"loss": 0.0, "accuracy": 0.0}
    window.add(*step(2.0, 3), 4)
    window.add(*step(1.0, 5), 12)
    assert window.means() == {"loss": pytest.approx(20 / 16), "accuracy": 0.5}
    window.add(*step(4.0, 0), 16)  # after they were asked for
    assert window.means() == {"loss": pytest.approx(84 / 32), "accuracy": 0.25}
    assert window.images == 32


def test_goes_on_from_its_state() -> None:
    whole, begun = Window(), Window()
    for window in (whole, begun):
        window.add(*step(0.1, 1), 3)
        window.add(*step(0.7, 2), 3)
    later = Window()
    later.load_state_dict(begun.state_dict())
    for window in (whole, later):
        window.add(*step(0.3, 3), 3)
    assert later.means() == whole.means()
    assert later.state_dict() == whole.state_dict()
