"""The factor of float16 gradients: when it grows and when it shrinks."""

from __future__ import annotations

from greedynas_fast.stages.loss_scale import LossScale


def test_it_grows_after_many_good_steps_in_a_row_and_shrinks_after_a_bad_one() -> None:
    scale = LossScale()
    start = scale.value
    for _ in range(1999):
        scale.update(True)
    assert scale.value == start
    scale.update(False)
    assert scale.value == start / 2
    for _ in range(1999):
        scale.update(True)
    assert scale.value == start / 2, "good steps are counted from the bad one"
    again = LossScale()
    again.load_state_dict(scale.state_dict())
    for one in (scale, again):
        one.update(True)
        assert one.value == start


def test_it_never_goes_below_one() -> None:
    scale = LossScale()
    for _ in range(50):
        scale.update(False)
    assert scale.value == 1.0
