"""Batch statistics, recalibration and the scoring of paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from greedynas_fast.errors import InputError
from greedynas_fast.supernet import Supernet, batch_statistics, extract, recalibrate, score_paths

PATHS = np.array([[0, 0, 0, 0], [1, 2, 3, 4], [2, 1, 2, 5], [5, 3, 1, 2], [3, 4, 0, 1]], dtype=np.uint8)


@pytest.fixture
def net(space) -> Supernet:
    """A supernet with random running statistics, batch norm scales and a classifier that tells images apart."""
    net = Supernet(space, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.5, 2.0, generator=generator)
                part.num_batches_tracked.fill_(17)
        net.head.classifier.weight.normal_(generator=generator)
    return net


def everything(net: nn.Module) -> tuple[dict[str, torch.Tensor], list[tuple[bool, object, object]]]:
    """All tensors, and the flags of all parts."""
    flags = [(m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None)) for m in net.modules()]
    return {key: value.clone() for key, value in net.state_dict().items()}, flags


def assert_same(net: nn.Module, before: tuple[dict[str, torch.Tensor], list[object]]) -> None:
    tensors, flags = everything(net)
    assert all(torch.equal(tensors[key], value) for key, value in before[0].items())
    assert flags == before[1]


def plain_batch_norm(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_batch_statistics_normalises_by_the_batch(images) -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(5.0)
    nn.init.normal_(norm.weight)
    x = images(4) * 3 + 2
    norm.eval()
    with batch_statistics(norm):
        torch.testing.assert_close(norm(x), plain_batch_norm(norm, x))
    assert norm.running_mean.eq(5.0).all()
    torch.testing.assert_close(norm(x), functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight))


@pytest.mark.parametrize("training", [False, True])
def test_batch_statistics_restores_everything(net, images, training) -> None:
    net.train(training)
    net.layers[0][0].bn1.train(not training)
    net.layers[1][1].bn2.momentum = 0.3
    before = everything(net)
    with batch_statistics(net):
        inside = [m.training for m in net.modules() if not isinstance(m, nn.BatchNorm2d)]
        assert set(inside) == {training}, "other layers keep their mode"
        net(images(4), PATHS[0])
    assert_same(net, before)
    with pytest.raises(ZeroDivisionError), batch_statistics(net):
        raise ZeroDivisionError
    assert_same(net, before)


def test_recalibration_is_the_average_of_batch_statistics(net, images) -> None:
    network = extract(net, PATHS[1])
    network.head.bn.momentum = 0.25
    batches = [images(4, seed=1), images(6, seed=2) * 2 + 1, images(3, seed=3)]
    seen: dict[str, list[torch.Tensor]] = {}
    reference = extract(net, PATHS[1]).eval()
    hooks = [
        m.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0].clone()))
        for name, m in reference.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    with batch_statistics(reference), torch.no_grad():
        for batch in batches:
            reference(batch)
    assert len(hooks) == len(seen) > 10
    recalibrate(network, iter(batches))
    for name, inputs in seen.items():
        norm = network.get_submodule(name)
        mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        var = torch.stack([x.var((0, 2, 3), correction=1) for x in inputs]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)
    assert not any(m.training for m in network.modules())
    assert network.head.bn.momentum == 0.25
    assert network.stem.bn.momentum == 0.1


def test_recalibration_forgets_old_statistics_and_is_repeatable(net, images) -> None:
    first, second = extract(net, PATHS[0]), extract(net, PATHS[0])
    for m in second.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.fill_(100.0)
    for network in (first, second, first):
        recalibrate(network, [images(4, seed=1), images(4, seed=2)])
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_recalibration_leaves_the_supernet_alone(net, images) -> None:
    before = everything(net)
    recalibrate(extract(net, PATHS[0]), [images(4)])
    assert_same(net, before)


def test_recalibration_without_batches_changes_nothing(net) -> None:
    network = extract(net, PATHS[0]).train()
    before = everything(network)
    with pytest.raises(InputError, match="images: expected at least one batch"):
        recalibrate(network, [])
    assert_same(network, before)


def manual_scores(forward, chunks) -> tuple[float, float]:
    losses, hits = [], []
    for x, y in chunks:
        logits = forward(x).detach().numpy().astype(np.float64)
        log_norm = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        losses += list(log_norm - logits[np.arange(len(y)), y.numpy()])
        hits += list(logits.argmax(1) == y.numpy())
    return float(np.mean(losses)), float(np.mean(hits))


@pytest.mark.parametrize("training", [False, True])
def test_scores_with_batch_statistics(net, images, labels, training) -> None:
    net.train(training)
    before = everything(net)
    x, y = images(11), labels(11)
    scores = score_paths(net, PATHS, x, y, batch_size=4)
    assert_same(net, before)
    assert scores.loss.dtype == scores.accuracy.dtype == np.float64
    assert scores.loss.shape == scores.accuracy.shape == (5,)
    chunks = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]
    for row, path in enumerate(PATHS):
        network = extract(net, path).eval()
        with batch_statistics(network):
            loss, accuracy = manual_scores(network, chunks)
        assert scores.loss[row] == pytest.approx(loss, rel=1e-12)
        assert scores.accuracy[row] == accuracy
    assert len(set(scores.loss)) == 5


def test_a_score_does_not_depend_on_the_other_paths_nor_on_running_statistics(net, images, labels) -> None:
    x, y = images(8), labels(8)
    together = score_paths(net, PATHS, x, y, batch_size=8)
    alone = [score_paths(net, [path], x, y, batch_size=8).loss[0] for path in PATHS[::-1]]
    assert together.loss[::-1].tolist() == alone
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.add_(1.0)
    assert score_paths(net, PATHS, x, y, batch_size=8).loss.tolist() == together.loss.tolist()


def test_a_small_rest_is_spread_over_the_batches(net, images, labels) -> None:
    x, y = images(9), labels(9)
    nine_in_eights = score_paths(net, PATHS[:1], x, y, batch_size=8)  # shares of 5 and 4, not 8 and 1
    assert nine_in_eights.loss == score_paths(net, PATHS[:1], x, y, batch_size=5).loss


def test_scores_with_recalibration(net, images, labels) -> None:
    net.train()
    before = everything(net)
    x, y = images(10), labels(10)
    calibration = [images(4, seed=5), images(4, seed=6)]
    scores = score_paths(net, PATHS, x, y, batch_size=3, bn="recalibrate", calibration=iter(calibration))
    assert_same(net, before)
    for row, path in enumerate(PATHS):
        network = extract(net, path)
        recalibrate(network, calibration)
        loss, accuracy = manual_scores(network, [(x, y)])
        assert scores.loss[row] == pytest.approx(loss, rel=1e-5)
        assert scores.accuracy[row] == accuracy


def test_scores_can_tell_good_from_bad(net, images) -> None:
    x = images(6)
    with batch_statistics(net.eval()), torch.no_grad():
        y = net(x, PATHS[0]).argmax(1)
    scores = score_paths(net, PATHS, x, y, batch_size=6)
    assert scores.accuracy[0] == 1.0
    assert scores.accuracy[1:].max() < 1.0


def test_gradients_are_not_recorded_and_no_paths_are_fine(net, images, labels) -> None:
    scores = score_paths(net, PATHS[:0], images(4), labels(4), batch_size=2)
    assert scores.loss.shape == scores.accuracy.shape == (0,)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn": "running"}, "bn: expected batch or recalibrate, got 'running'"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"batch_size": 1}, "batch statistics need 2 images or more a batch, got 1"),
        ({"bn": "recalibrate"}, "calibration: expected at least one batch"),
        ({"bn": "recalibrate", "calibration": []}, "calibration: expected at least one batch"),
    ],
)
def test_bad_scoring_options(net, images, labels, options, message) -> None:
    before = everything(net)
    with pytest.raises(InputError, match=message):
        score_paths(net, PATHS, images(4), labels(4), **{"batch_size": 4, **options})
    assert_same(net, before)


def test_bad_scoring_input(net, images, labels) -> None:
    before = everything(net)
    with pytest.raises(InputError, match="images: expected as many as labels and at least one, got 4 and 3"):
        score_paths(net, PATHS, images(4), labels(3), batch_size=4)
    with pytest.raises(InputError, match="at least one, got 0 and 0"):
        score_paths(net, PATHS, images(0), labels(0), batch_size=4)
    with pytest.raises(InputError, match="layer 2 has operations 0 to 3, got 5"):
        score_paths(net, [(0, 0, 0, 0), (0, 0, 5, 0)], images(4), labels(4), batch_size=4)
    assert_same(net, before)
