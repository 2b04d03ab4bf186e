"""Op-masked norm, gate, optimizer and layer on a GPU: against autograd in float64, torch's SGD, and modules alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from masked_norm_cases import CASES, Case, by_group, compare, gates_of, gradients, leaves_of, oracle, public, random_sum
from sgd_cases import BLOCKS, active, buffers, torch_steps
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from greedynas_fast import paths, spaces
from greedynas_fast.nn import build_operation, initialise
from greedynas_fast.ops.inverted_residual import Gate
from greedynas_fast.ops.ragged import ragged
from greedynas_fast.ops.triton_kernels import backend, load
from greedynas_fast.sampling import FairSampler, group_size
from greedynas_fast.spaces.specs import IdentitySpec, InvertedResidualSpec, SqueezeExciteSpec
from greedynas_fast.supernet import ParameterBank, Supernet, features_together, score_paths
from greedynas_fast.supernet.batchnorm import batch_statistics
from greedynas_fast.supernet.masked_layer import run_masked_layer
from greedynas_fast.supernet.sgd import Buffers, Rule, update_torch, update_triton

# float32: sums of some thousand values. The half types round what is read again, and the result.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# More rows than a tile has, widths that no tile divides, and a lone pixel.
LAYERS = [
    *CASES,
    Case(((9, 24, 0), (5, 13, 1), (4, 24, 0), (3, 30, -1)), 14, 14),
    Case(((5, 31, 0), (3, 17, 1)), 60, 60, activation="silu", residual=False),
    Case(((65, 8, 1),), 1, 1, activation="relu"),
]


@pytest.fixture
def card() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


def gates_on(case: Case, device: torch.device) -> dict[int, Gate]:
    return {
        op: Gate(*(value.detach().to(device).requires_grad_() for value in gate[:4]), *gate[4:])
        for op, gate in gates_of(case).items()
    }


def results(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    leaves, gates = leaves_of(case, dtype, str(device)), gates_on(case, device)
    assert backend(leaves["x"]) == "triton"
    parts = by_group(case, public(case, leaves, gates))
    return parts | by_name(case, gradients(parts, leaves, gates))


def by_name(case: Case, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients, of flat activations by group."""
    named = {}
    for name, grad in grads.items():
        layout = {"x": case.layout, "residual": case.layout_out}.get(name)
        if layout is None:
            named[f"grad {name}"] = grad
        else:
            named |= {f"grad {name}{g}": layout.view(grad, g) for g in layout.live}
    return named


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_norm_and_gate(case: Case, dtype: torch.dtype, card: torch.device) -> None:
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves_of(case, dtype).items()}
    gates = gates_of(case)
    want = oracle(case, exact, gates)
    compare(case, results(case, dtype, card), want | by_name(case, gradients(want, exact, gates)), TOLERANCE[dtype])


def test_equal_bits_each_time(card: torch.device) -> None:
    one, two = (results(LAYERS[-3], torch.bfloat16, card) for _ in range(2))
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_gradients_are_added_to_the_bank(card: torch.device) -> None:
    case = LAYERS[-3]
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves_of(case).items()}
    want = gradients(oracle(case, exact, gates_of(case)), exact, gates_of(case))["bank"]
    leaves = leaves_of(case, device=str(card))
    bank_grad = torch.ones_like(leaves["bank"])
    random_sum(by_group(case, public(case, leaves, gates_on(case, card), bank_grad))).backward()
    size = float(want.abs().max())
    torch.testing.assert_close(bank_grad.cpu(), 1 + want.float(), rtol=5e-5, atol=5e-5 * size)
    assert bool((bank_grad.cpu()[want == 0] == 1).all())


@pytest.mark.parametrize("nesterov", [False, True])
def test_optimizer(nesterov: bool, card: torch.device) -> None:
    sgd = load("sgd")
    options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    data, grad, *_ = before = buffers()
    want, want_buffer = torch_steps(data, [grad], 0.2, 1.5, **options)
    tensors = [tensor.to(card, copy=True) for tensor in before]
    blocks = sgd.block_list(BLOCKS, card)
    scale = torch.full((1,), 0.5, device=card)
    tensors[1] *= 2
    found = sgd.control(tensors[1], blocks, inverse_loss_scale=scale, clip_norm=1.5)
    sgd.update(*tensors, blocks, lr=0.2, ema_decay=0.9, scale=found.scale, skip=found.skip, **options)
    on = active()
    torch.testing.assert_close(tensors[0].cpu()[on].double(), want[on], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tensors[2].cpu()[on].double(), want_buffer[on], rtol=1e-5, atol=1e-6)
    assert not tensors[1].cpu()[on].any()
    for now, old in zip(tensors, before, strict=True):
        assert torch.equal(now.cpu()[~on], old[~on] * 2 if old is grad else old[~on])


@pytest.mark.parametrize(("clip", "loss_scale"), [(None, None), (1.5, 8.0)])
def test_update_as_torchs(card: torch.device, clip: float | None, loss_scale: float | None) -> None:
    rule, table = Rule(0.9, 0.1, True, clip, 0.75), np.array(BLOCKS, dtype=np.int64)
    found, want = (Buffers(*(tensor.to(card) for tensor in buffers())) for _ in range(2))
    for _ in range(2):
        assert update_triton(found, table, rule, 0.2, loss_scale)
        assert update_torch(want, table, rule, 0.2, loss_scale)
        for ours, theirs in zip(found, want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        found.grad.fill_(0.5)
        want.grad.fill_(0.5)


def test_scores_by_layers(card: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    space = spaces.get("mb-se")
    chosen = paths.propose(space.allowed, 0, 0, 0, 12)
    images, labels = torch.randn(8, 3, 64, 64, device=card), torch.arange(8, device=card)
    net = Supernet(space).to(card, memory_format=torch.channels_last)
    found, want = (score_paths(net, chosen, images, labels, batch_size=8, walk=walk) for walk in ("layers", "paths"))
    np.testing.assert_allclose(found.loss, want.loss, rtol=1e-4)
    few = score_paths(net, chosen[5:8], images, labels, batch_size=8, walk="layers")
    np.testing.assert_allclose(few.loss, found.loss[5:8], rtol=1e-5)


def test_training_by_layers(card: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of a fair group, and with the bank's added in place."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    space = spaces.get("sample")
    net = Supernet(space, seed=0).to(card, memory_format=torch.channels_last).train()
    bank = ParameterBank(net)
    images = torch.randn(8, space.in_channels, 28, 28, generator=torch.Generator().manual_seed(1)).to(card)
    group = FairSampler(space, seed=3).sample(group_size(space.allowed)).paths
    net.head.dropout.p = 0.0
    found = []
    for way in ("paths", "layers", "layers, in place"):
        bank.zero_grad(group)
        if way == "paths":
            logits = [net(images, path) for path in group]
        else:
            features = features_together(net, images, group, bank if way == "layers, in place" else None)
            logits = [net.head(part) for part in features]
        torch.stack(logits).square().sum().backward()
        found.append(bank.grad.clone())
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-3


def test_a_bad_gradient_on_the_card(card: torch.device) -> None:
    sgd = load("sgd")
    tensors = [tensor.to(card) for tensor in buffers()]
    before = [tensor.clone() for tensor in tensors]
    tensors[1][150] = torch.inf
    blocks = sgd.block_list(BLOCKS, card)
    found = sgd.control(tensors[1], blocks)
    sgd.update(*tensors, blocks, lr=0.2, momentum=0.9, scale=found.scale, skip=found.skip)
    for index in (0, 2, 3):
        assert torch.equal(tensors[index], before[index])
    assert not tensors[1].cpu()[active()].any()


def test_layer(card: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """MB-SE's widths; float32 products without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    se = SqueezeExciteSpec()
    specs = (
        InvertedResidualSpec("MB3_K3_SE", 3, (3,), se=se),
        InvertedResidualSpec("MB6_MIX", 6, (3, 5, 7)),
        IdentitySpec(),
    )
    operations = [build_operation(spec, 40, 40, 1) for spec in specs]
    for operation in operations:
        initialise(operation, torch.Generator().manual_seed(0))
        operation.to(card)
    reference = copy.deepcopy(operations)
    choices, samples = (0, 1, 2, 0), (4, 3, 2, 5)
    layout = ragged(samples, 14, 14, [40] * 4)
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(n, 40, 14, 14, generator=generator).to(card).requires_grad_() for n in samples]
    x = layout.pack([part.detach() for part in parts]).requires_grad_()
    y, out = run_masked_layer(operations, choices, x, layout)
    total = torch.zeros((), device=card)
    for group, (op, part) in enumerate(zip(choices, parts, strict=True)):
        with batch_statistics(reference[op]):
            want = reference[op](part * 1)
        weights = torch.randn(want.shape, generator=generator).to(card)
        torch.testing.assert_close(out.view(y, group), want, rtol=1e-3, atol=1e-3)
        total = total + (out.view(y, group) * weights).sum() + (want * weights).sum()
    total.backward()
    for group, part in enumerate(parts):
        torch.testing.assert_close(layout.view(x.grad, group), part.grad, rtol=1e-2, atol=1e-2)
    for op in set(choices):
        for own, other in zip(operations[op].parameters(), reference[op].parameters(), strict=True):
            error = float((own.grad - other.grad).abs().max())
            assert error <= 2e-3 * float(other.grad.abs().max()) + 1e-3
