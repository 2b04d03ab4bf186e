"""Tiles: the table's rules, and what tuning keeps on disk, with a stopwatch that is made up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from greedynas_fast.errors import InputError
from greedynas_fast.ops import masked_pointwise_tiles as tiles
from greedynas_fast.ops import triton_kernels
from greedynas_fast.ops.masked_pointwise_layer import Layer
from greedynas_fast.ops.masked_pointwise_tiles import Kernel, Kind, Tile, choose
from greedynas_fast.ops.masked_pointwise_tuning import tune


@pytest.mark.parametrize(("width", "block"), [(0, 16), (1, 16), (17, 32), (33, 64), (64, 64), (65, 64), (5000, 64)])
def test_tiles_are_no_wider_than_the_layer(width: int, block: int) -> None:
    tile = Tile(32, 64, 64, 4, 3)
    assert tile.fit(width, 64) == Tile(32, block, 64, 4, 3)
    assert tile.fit(64, width) == Tile(32, 64, block, 4, 3)


def test_every_kind_has_a_tile() -> None:
    for kernel in ("forward", "data", "weight"):
        for dtype, tf32 in (
            (torch.float32, False),
            (torch.float32, True),
            (torch.bfloat16, False),
            (torch.float16, True),
        ):
            assert choose(kernel, dtype, tf32, 100, 999, 999).rows >= 16
    assert choose("forward", torch.bfloat16, False, 10**6, 64, 64) != choose(
        "forward", torch.bfloat16, False, 9, 64, 64
    )


def test_what_is_measured_takes_the_place_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREEDYNAS_CACHE_DIR", str(tmp_path / "cache"))
    path = tiles.cache_file("NVIDIA H100 80GB HBM3")
    assert path.parent == tmp_path / "cache"
    assert path.name.startswith("pointwise-NVIDIA-H100-80GB-HBM3-triton-")
    best = Tile(32, 32, 128, 8, 2)

    def stopwatch(kernel: Kernel, kind: Kind, layer: Layer, tile: Tile) -> float:
        assert layer.macs
        return float("inf") if tile.rows == 128 else 1.0 if tile == best else 2.0

    wide = (torch.bfloat16, False, 10**6, 999, 999)
    before = choose("forward", *wide, card="NVIDIA H100 80GB HBM3")
    found = tune(["half"], candidates=[best, Tile(128, 16, 16, 4, 1)], measure=stopwatch, path=path)
    assert set(found.values()) == {best}
    assert len(found) == 6
    assert choose("forward", *wide, card="NVIDIA H100 80GB HBM3") == best != before
    assert choose("forward", *wide) == choose("forward", *wide, card="another card") == before
    assert tune(["tf32"], candidates=[], measure=stopwatch, path=path).keys() > found.keys()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "[1]", '{"forward-half-many-rows": [1, 2]}', '{"forward-half-many-rows": "x"}'])
def test_a_damaged_file_is_not_used(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.warns(UserWarning, match=r"tiles.json cannot be used .* tiles are those of the table"):
        assert tiles.measured(path) == {}


def test_tuning_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="tune: expected a GPU and Triton"):
        tune()


def test_without_triton_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "available", lambda: False)
    with pytest.raises(InputError, match="need Triton on a GPU"):
        triton_kernels.load("pointwise")
    assert triton_kernels.backend(torch.zeros(1)) == "reference"
