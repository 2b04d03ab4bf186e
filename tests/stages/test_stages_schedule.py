"""The schedule of Algorithm 1 against the numbers of Sec. 5.1 and a counter that walks through the epochs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from greedynas_fast.config import TrainConfig
from greedynas_fast.stages.schedule import Schedule

STEPS = 7


@pytest.fixture(scope="module")
def paper() -> Schedule:
    """The defaults are the paper's."""
    return Schedule(TrainConfig(), STEPS)


def due_epochs(config: TrainConfig) -> list[int]:
    """Epochs after which a filter is trained, found by counting down."""
    found, left = [], config.warmup_epochs or config.update_every_epochs
    for epoch in range(1, config.epochs + 1):
        left -= 1
        if left == 0:
            found.append(epoch)
            left = config.update_every_epochs
    return found


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    low = draw(st.floats(0, 0.99))
    config = TrainConfig(
        epochs=draw(st.integers(1, 40)),
        lr=draw(st.floats(1e-3, 10)),
        sampler=draw(st.sampled_from(["filter", "filter", "filter", "uniform", "fair"])),
        warmup_epochs=draw(st.integers(0, 45)),
        update_every_epochs=draw(st.integers(1, 12)),
        q_start=low,
        q_end=draw(st.floats(low, 0.99)),
        q_epochs=draw(st.integers(1, 50)),
    )
    return Schedule(config, draw(st.integers(1, 9)))


def test_the_paper(paper: Schedule) -> None:
    assert paper.total_steps == 120 * STEPS
    updates = [step for step in range(paper.total_steps + 1) if paper.is_update(step)]
    assert updates == [epoch * STEPS for epoch in range(20, 121, 5)]
    assert paper.q(20) == 0.5
    assert paper.q(25) == pytest.approx(0.5 + 5 * 0.49 / 90)
    assert paper.q(65) == pytest.approx(0.745)
    assert paper.q(110) == pytest.approx(0.99)
    assert paper.q(119) == paper.q(110)
    assert paper.q(0) == paper.q(19) == 0.5


def test_the_learning_rate_of_the_paper(paper: Schedule) -> None:
    assert paper.lr(0) == 0.12
    assert paper.lr(60 * STEPS) == pytest.approx(0.06)
    assert paper.lr(paper.total_steps) == pytest.approx(0, abs=1e-12)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.12)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, paper.total_steps)
    for step in range(paper.total_steps):
        assert paper.lr(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        torch_schedule.step()


@given(schedules())
def test_updates_against_the_counter(schedule: Schedule) -> None:
    config, per_epoch = schedule.config, schedule.steps_per_epoch
    due = [epoch * per_epoch for epoch in due_epochs(config)] if config.sampler == "filter" else []
    assert [step for step in range(-1, schedule.total_steps + per_epoch + 1) if schedule.is_update(step)] == due
    for step in range(schedule.total_steps):
        later = [update for update in due if update > step]
        assert schedule.next_update(step) == min([*later, schedule.total_steps])
        assert schedule.updates_by(step) == len([update for update in due if update <= step])
    assert schedule.updates_by(schedule.total_steps) == len(due)


@given(schedules())
def test_q_and_lr_are_monotone(schedule: Schedule) -> None:
    config = schedule.config
    values = [schedule.q(epoch) for epoch in range(config.warmup_epochs + config.q_epochs + 3)]
    assert values == sorted(values)
    assert values[0] == values[config.warmup_epochs] == config.q_start
    assert values[-1] == pytest.approx(config.q_end)
    rates = [schedule.lr(step) for step in range(schedule.total_steps)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == config.lr
    assert rates[-1] > 0


@given(schedules(), st.integers(0, 300))
def test_epoch(schedule: Schedule, step: int) -> None:
    epoch = schedule.epoch(step)
    assert epoch * schedule.steps_per_epoch <= step < (epoch + 1) * schedule.steps_per_epoch
