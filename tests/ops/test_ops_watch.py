"""What a watch notices, and what it does not."""

from __future__ import annotations

from typing import Any

import torch

from greedynas_fast.ops.watch import Watch


class Thing:
    pass


class Other(Thing):
    pass


def test_entries_are_compared_by_identity() -> None:
    place: dict[str, Any] = {"a": (1, 2), "b": None}
    watch = Watch()
    watch.entries(place, "a", "b", "absent")
    assert watch.holds()
    place["c"] = 1
    assert watch.holds()
    place["a"] = tuple([1, 2])  # noqa: C409 (an equal object)
    assert not watch.holds()


def test_entries_that_come_and_go() -> None:
    place: dict[str, Any] = {"a": 1}
    for change in (lambda: place.pop("a"), lambda: place.update(b=None)):
        place.clear()
        place["a"] = 1
        watch = Watch()
        watch.entries(place, "a", "b")
        assert watch.holds()
        change()
        assert not watch.holds()


def test_sizes_and_types() -> None:
    place, thing = {1: 2}, Thing()
    watch = Watch()
    watch.size(place)
    watch.type_of(thing)
    place[1] = 3
    assert watch.holds()
    place[2] = 3
    assert not watch.holds()
    del place[2]
    assert watch.holds()
    thing.__class__ = Other
    assert not watch.holds()


def test_places_of_tensors() -> None:
    tensor = torch.zeros(3)
    watch = Watch()
    watch.place_of(tensor)
    tensor.add_(1)
    assert watch.holds()
    tensor.data = torch.zeros(3)
    assert not watch.holds()


def test_nothing_watched() -> None:
    assert Watch().holds()


def test_what_is_watched_goes_with_it() -> None:
    import gc
    import weakref

    thing = Thing()
    thing.__dict__["watch"] = watch = Watch()
    watch.entries(thing.__dict__, "watch")
    watch.type_of(thing)
    gone = weakref.ref(thing)
    del thing, watch
    gc.collect()
    assert gone() is None
