"""Training on fused blocks and on torch's layers from one seed: the same curve, within what rounding grows to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from greedynas_fast import spaces
from greedynas_fast.data import Augment, DataConfig, open_data
from greedynas_fast.nn import use_backend
from greedynas_fast.nn.backend import Backend
from greedynas_fast.supernet import BankSGD, ParameterBank, Supernet, batch_statistics

STEPS, BATCH = 200, 32


def train(backend: Backend) -> tuple[list[float], float]:
    """Losses of all steps, and the mean accuracy of ten paths on validation images afterwards."""
    space = spaces.get("sample")
    data = open_data(DataConfig(), resolution=space.resolution, in_channels=space.in_channels, seed=0)
    net = Supernet(space, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.head.dropout.p = 0.0
    use_backend(net, backend)
    net.train()
    bank = ParameterBank(net)
    optimizer = BankSGD(bank, 0.9, 4e-5, clip_norm=5.0)
    paths = np.random.default_rng(0).integers(0, space.num_ops, size=(STEPS, space.num_layers))
    batches = data.train.batches(BATCH, start_step=0, num_steps=STEPS, seed=0, augment=Augment())
    losses = []
    for path, (images, labels) in zip(paths, batches, strict=True):
        choice = tuple(int(op) for op in path)
        loss = functional.cross_entropy(net(images, choice), labels)
        bank.zero_grad(choice)
        loss.backward()
        optimizer.step(choice, 0.05)
        losses.append(loss.item())
    images, labels = next(iter(data.validation.batches(500, start_step=0, num_steps=1, seed=0, augment=Augment())))
    with torch.no_grad(), batch_statistics(net):
        correct = [(net(images, tuple(map(int, path))).argmax(1) == labels).float().mean() for path in paths[:10]]
    return losses, float(torch.stack(correct).mean())


@pytest.mark.slow
def test_the_curve_does_not_depend_on_the_backend() -> None:
    fused, fused_accuracy = train("fused")
    plain, plain_accuracy = train("reference")
    # Rounding differs from the first step on, and training makes it grow.
    np.testing.assert_allclose(fused[:5], plain[:5], rtol=1e-3)
    assert abs(np.mean(fused[-50:]) - np.mean(plain[-50:])) < 0.05
    assert np.mean(fused[-50:]) < 0.75 * np.mean(fused[:10]), "neither learns anything"
    assert abs(fused_accuracy - plain_accuracy) < 0.08
