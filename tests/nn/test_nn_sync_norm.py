"""Batch norm over the batches of several ranks, against torch's on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks, successes
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional

from greedynas_fast.errors import InputError
from greedynas_fast.nn import InvertedResidual, local_norms, synchronise_norms, use_backend
from greedynas_fast.nn.backend import Fusable
from greedynas_fast.runtime import World, all_reduce
from greedynas_fast.spaces.specs import InvertedResidualSpec, SqueezeExciteSpec

CHANNELS, CLASSES = 6, 4
PARTS = {2: (slice(0, 5), slice(5, 7)), 3: (slice(0, 1), slice(1, 4), slice(4, 7))}
# Sums in float64, all else in float32: a few roundings of values around 10.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def _model(momentum: float | None, kind: str = "ours") -> nn.Module:
    torch.manual_seed(3)
    if kind == "timm":
        layers = [BatchNormAct2d(CHANNELS, act_layer=nn.SiLU), nn.Conv2d(CHANNELS, 8, 3), BatchNormAct2d(8)]
        last = BatchNormAct2d(8, apply_act=False, drop_layer=nn.Flatten)
        return _begun(nn.Sequential(*layers, nn.Conv2d(8, 8, 1, stride=3), last), momentum)
    spec = InvertedResidualSpec("MB3_K3_SE", 3, (3,), se=SqueezeExciteSpec())
    block = InvertedResidual(spec, CHANNELS, CHANNELS, 1)
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS), block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _begun(model, momentum)


def _begun(model: nn.Module, momentum: float | None) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = momentum
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return model.train()


def _batch() -> tuple[Tensor, Tensor]:
    # Far from zero, where sums of squares in float32 would have lost the variance.
    images = 30.0 + torch.randn(7, CHANNELS, 9, 5, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last), torch.arange(7) % CLASSES


def _figures(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> dict[str, Any]:
    """Output, gradients and statistics of two steps of training."""
    outputs = []
    for _ in range(2):
        images = images.detach().requires_grad_()
        output = model(images)
        loss = functional.cross_entropy(output[:, :CLASSES], labels, reduction="sum") / size
        loss.backward()
        outputs.append(output.detach())
    return {
        "output": torch.stack(outputs, dim=1),
        "grad": images.grad,
        "weights": {name: parameter.grad for name, parameter in model.named_parameters()},
        "statistics": {name: value.clone() for name, value in model.state_dict().items() if "running" in name},
        "counts": {int(value) for name, value in model.state_dict().items() if "num_batches" in name},
    }


def _synchronised(world: World, momentum: float | None, kind: str) -> dict[str, Any]:
    model = _model(momentum, kind)
    keys = list(model.state_dict())
    synchronise_norms(model, all_reduce)
    assert list(model.state_dict()) == keys
    images, labels = _batch()
    part = PARTS[world.size][world.rank]
    found = _figures(model, images[part], labels[part], len(labels))
    for grad in found["weights"].values():
        all_reduce(grad).wait()
    return found


@pytest.mark.parametrize(("size", "momentum", "kind"), [(2, 0.1, "ours"), (3, None, "ours"), (2, 0.1, "timm")])
def test_as_on_the_whole_batch(size: int, momentum: float | None, kind: str) -> None:
    model = _model(momentum, kind)
    use_backend(model, "reference")
    wanted = _figures(model, *_batch(), 7)
    found = successes(run_ranks(size, _synchronised, momentum, kind))
    torch.testing.assert_close(torch.cat([one["output"] for one in found]), wanted["output"], **TOLERANCE)
    torch.testing.assert_close(torch.cat([one["grad"] for one in found]), wanted["grad"], **TOLERANCE)
    for one in found:
        torch.testing.assert_close(one["weights"], wanted["weights"], **TOLERANCE)
        torch.testing.assert_close(one["statistics"], wanted["statistics"], **TOLERANCE)
        assert one["counts"] == wanted["counts"] == {2}
        assert all(torch.equal(a, b) for a, b in zip(*(f["statistics"].values() for f in (one, found[0])), strict=True))


def _alone(world: World) -> list[bool]:
    """What ranks that do different things find; a message of one of them alone would be awaited for ever."""
    model, plain = _model(0.1), _model(0.1)
    synchronise_norms(model, all_reduce)
    images, _ = _batch()
    block, twin = model[1], plain[1]
    assert isinstance(block, Fusable)
    assert isinstance(twin, Fusable)
    found = [not block.fuses(images)]
    if world.is_main:
        with local_norms(model):
            found += [block.fuses(images), torch.equal(block(images), twin(images))]
        model.eval()
        plain.eval()
        use_backend(plain, "reference")
        found += [torch.allclose(model(images), plain(images), **TOLERANCE)]  # the gate of `model` is fused
        model.train()
    found += [not block.fuses(images)]
    return world.gather(found)[0]


def test_alone_within_local_norms_and_in_evaluation() -> None:
    for found in successes(run_ranks(2, _alone)):
        assert found == [True] * 5


class _OtherNorm(nn.BatchNorm2d):
    pass


def test_an_unknown_batch_norm_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), _OtherNorm(3))
    with pytest.raises(InputError, match="there is none for 1, a _OtherNorm"):
        synchronise_norms(model, all_reduce)
    assert [type(norm) for norm in model] == [nn.BatchNorm2d, _OtherNorm]
