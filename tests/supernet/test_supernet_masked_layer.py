"""A layer for several paths at once against each group through its module alone: results and all gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn import build_operation, initialise
from greedynas_fast.ops.ragged import Ragged, ragged
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.spaces.specs import IdentitySpec, InvertedResidualSpec, ShuffleUnitSpec, SqueezeExciteSpec
from greedynas_fast.supernet import ParameterBank, Supernet
from greedynas_fast.supernet.batchnorm import batch_statistics
from greedynas_fast.supernet.masked_layer import run_masked_layer

SE = SqueezeExciteSpec()
SPECS = (
    InvertedResidualSpec("MB3_K3", 3, (3,)),
    InvertedResidualSpec("MB6_MIX_SE", 6, (3, 5, 7), se=SE),
    InvertedResidualSpec("MB3_K5_SE", 3, (5,), se=SqueezeExciteSpec(0.25, "relu", "sigmoid")),
    IdentitySpec(),
    ShuffleUnitSpec("Shuffle_5", 5),
    InvertedResidualSpec("MB6_K3_relu", 6, (3,), activation="relu"),
    InvertedResidualSpec("MB1_K3", 1, (3,)),
)
TOLERANCE = 2e-5
"""Of float32 sums of some hundred values in another order, relative to the largest value of the tensor."""

Case = tuple[tuple[int, ...], tuple[int, ...], int, int, int]
CASES: dict[str, Case] = {  # choices, samples, C_in, C_out, stride
    "residual, identities": ((0, 1, 3, 0, 2, 3, 1), (2, 3, 1, 2, 1, 2, 2), 16, 16, 1),
    "residual, no identity": ((0, 1, 2, 0), (2, 1, 3, 2), 16, 16, 1),
    "residual, modules": ((4, 0, 3, 5, 1, 6), (2, 2, 1, 2, 1, 2), 16, 16, 1),
    "no residual": ((1, 0, 2, 0), (1, 2, 2, 1), 16, 24, 1),
    "stride 2, modules": ((3, 0, 4, 1, 3), (2, 2, 2, 1, 1), 16, 24, 2),
    "identities alone": ((3, 3), (2, 1), 16, 16, 1),
    "modules alone": ((4, 6), (2, 2), 16, 16, 1),
    "no samples in a group": ((0, 1, 2), (2, 0, 1), 16, 16, 1),
}


def operations_of(in_channels: int, out_channels: int, stride: int) -> nn.ModuleList:
    operations = nn.ModuleList(build_operation(spec, in_channels, out_channels, stride) for spec in SPECS)
    initialise(operations, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in (part for part in operations.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-0.5, 0.5, generator=generator)
    return operations


def inputs_of(layout: Ragged, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(n, c, layout.height, layout.width, generator=generator) * 2 + 0.5).to(dtype)
        for n, c in zip(layout.samples, layout.widths, strict=True)
    ]


def alone(
    operations: nn.ModuleList, choices: tuple[int, ...], parts: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """What each module gives for its group, with batch statistics; and inputs that hold gradients after backward."""
    leaves = [part.clone().requires_grad_() for part in parts]
    with batch_statistics(operations):
        results = [operations[op](leaf * 1) for op, leaf in zip(choices, leaves, strict=True) if len(leaf)]
    return results, leaves


def weights_of(results: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(result.shape, generator=generator) for result in results]


def assert_near(got: Tensor, want: Tensor, name: str) -> None:
    assert got.shape == want.shape, name
    scale = float(want.detach().abs().max()) if want.numel() else 0.0
    error = float((got - want).detach().abs().max()) if want.numel() else 0.0
    assert error <= TOLERANCE * (scale + 1e-3), f"{name}: off by {error:.3g} at {scale:.3g}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_each_group_alone(case: Case) -> None:
    choices, samples, in_channels, out_channels, stride = case
    layout = ragged(samples, 6, 7, [in_channels] * len(samples))
    mine, reference = (operations_of(in_channels, out_channels, stride) for _ in range(2))
    before = copy.deepcopy(mine.state_dict())
    parts = inputs_of(layout)

    wanted, leaves = alone(reference, choices, parts)
    weights = weights_of(wanted)
    sum((y * w).sum() for y, w in zip(wanted, weights, strict=True)).backward()

    x = layout.pack(parts).requires_grad_()
    y, out = run_masked_layer(list(mine), choices, x, layout)
    live = [group for group in range(out.groups) if samples[group]]
    got = [out.view(y, group) for group in live]
    sum((y * w).sum() for y, w in zip(got, weights, strict=True)).backward()

    assert out.widths == (out_channels,) * len(samples)
    for group, result, want in zip(live, got, wanted, strict=True):
        assert_near(result, want, f"y of group {group}")
        assert_near(layout.view(x.grad, group), leaves[group].grad, f"gradient of x of group {group}")
    assert_parameters(mine, reference)
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())  # running statistics too


def assert_parameters(mine: nn.Module, reference: nn.Module) -> None:
    """Equal gradients; none where the reference has none."""
    pairs = zip(mine.named_parameters(), reference.parameters(), strict=True)
    for (name, own), other in pairs:
        if other.grad is None:
            assert own.grad is None or not own.grad.any(), name
        else:
            assert_near(own.grad, other.grad, name)


def test_with_a_bank_gradients_are_added_in_place(space: SearchSpace) -> None:
    choices, samples = (0, 1, 2, 0), (2, 2, 1, 1)
    net = Supernet(space)
    reference = copy.deepcopy(net.layers[1])
    bank = ParameterBank(net)
    bank.grad.fill_(0.25)
    before = bank.grad.clone()
    layout = ragged(samples, 5, 5, [16] * 4)
    parts = inputs_of(layout)
    wanted, _ = alone(reference, choices, parts)
    weights = weights_of(wanted)
    sum((y * w).sum() for y, w in zip(wanted, weights, strict=True)).backward()

    y, out = run_masked_layer(list(net.layers[1]), choices, layout.pack(parts), layout, bank)
    sum((out.view(y, group) * w).sum() for group, w in enumerate(weights)).backward()

    bank.check()
    for (name, own), other in zip(net.layers[1].named_parameters(), reference.parameters(), strict=True):
        if other.grad is not None:
            assert_near(own.grad - 0.25, other.grad, name)
    moved = torch.zeros_like(bank.grad, dtype=torch.bool)
    for op in set(choices):
        block = bank.block(1, op)
        moved[block.start : block.end] = True
    assert torch.equal(bank.grad[~moved], before[~moved])


def test_bank_of_another_net(space: SearchSpace) -> None:
    bank = ParameterBank(Supernet(space))
    layout = ragged((2,), 5, 5, (16,))
    with pytest.raises(InputError, match="does not hold the parameters"):
        run_masked_layer(list(operations_of(16, 16, 1)), (0,), layout.pack(inputs_of(layout)), layout, bank)


def test_a_group_does_not_depend_on_the_others() -> None:
    operations = list(operations_of(16, 16, 1))
    layout = ragged((2, 3, 1), 6, 7, [16] * 3)
    parts = inputs_of(layout)
    with torch.no_grad():
        y, out = run_masked_layer(operations, (1, 0, 2), layout.pack(parts), layout)
        for group, op in enumerate((1, 0, 2)):
            own = ragged((len(parts[group]),), 6, 7, (16,))
            single, _ = run_masked_layer(operations, (op,), own.pack([parts[group]]), own)
            assert torch.equal(own.view(single, 0), out.view(y, group))


def test_autocast() -> None:
    operations = operations_of(16, 16, 1)
    layout = ragged((3, 2, 2, 1), 6, 7, (16,) * 4)
    parts = inputs_of(layout)
    choices = (1, 3, 4, 0)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y, _ = run_masked_layer(list(operations), choices, layout.pack(parts), layout)
    with torch.no_grad():
        want, _ = run_masked_layer(list(operations), choices, layout.pack(parts), layout)
    assert y.dtype is torch.bfloat16
    assert float((y.float() - want).abs().max()) < 0.05 * float(want.abs().max())


def test_bf16() -> None:
    operations = operations_of(16, 16, 1)
    layout = ragged((3, 2), 6, 7, (16, 16))
    parts = inputs_of(layout, torch.bfloat16)
    y, out = run_masked_layer(list(operations), (1, 0), layout.pack(parts), layout)
    assert y.dtype is torch.bfloat16
    wanted, _ = alone(operations, (1, 0), [part.float() for part in parts])
    for group, want in enumerate(wanted):
        # Four tensors in between are rounded to 8 bits.
        error = (out.view(y, group).float() - want).detach().abs().max()
        assert float(error) < 0.05 * float(want.detach().abs().max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"choices": (0,)}, "one for each of 2 groups"),
        (lambda a: a | {"choices": (0, 7)}, "operations 0 to 6, got 7"),
        (lambda a: a | {"x": a["x"][:-16]}, r"expected floating \[1344\]"),
        (lambda a: a | {"x": torch.zeros(32), "layout": ragged((1, 1), 1, 1, (16, 16))}, "single value a channel"),
        (lambda a: a | {"layout": ragged((2, 1), 6, 7, (16, 0))}, "expected"),
    ],
)
def test_arguments(change: Callable[[dict[str, object]], dict[str, object]], message: str) -> None:
    layout = ragged((1, 1), 6, 7, (16, 16))
    arguments = {"choices": (0, 1), "x": layout.pack(inputs_of(layout)), "layout": layout}
    with pytest.raises(InputError, match=message):
        run_masked_layer(list(operations_of(16, 16, 1)), **change(arguments))
