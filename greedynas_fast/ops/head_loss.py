"""What a network's head and its loss do in a training step, for `direct`.

See csrc/blocks/pooled_pointwise.h and classifier_loss.h. There is no operator for it: where one is wanted, layers run
one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast.errors import InputError

from . import memory
from .direct import Running
from .pooled_pointwise import PooledPointwise, gradients_for, leaves_of


class HeadTargets(NamedTuple):
    """What a forward pass of `HeadLoss` takes besides the features.

    Attributes:
        labels: int64 [N], contiguous.
        smoothing: share of the target that all classes have in equal parts.
        mask: float32 [N, C] of 0 and 1, contiguous: what dropout keeps; None: all.
        scale: of what dropout keeps.
        correct: int64 scalar, becomes the number of images whose label has the largest logit.
    """

    labels: Tensor
    smoothing: float
    mask: Tensor | None
    scale: float
    correct: Tensor


class HeadLoss(PooledPointwise):
    """`PooledPointwise`, then dropout, linear classifier and mean cross entropy with label smoothing.

    Args:
        shape: [N, C_in, H, W] of x.
        convolution: weight, norm and activation of `PooledPointwise`.
        classifier: weight [K, C] and bias [K]; as the others float32 and contiguous, used by address.
        running: what is to be updated, or nothing.
        threads: to run on.
        bf16: see `Laid`; what follows the average is float32 in any case.

    Raises:
        InputError: a shape that the weight does not fit, or a single value a channel.
    """

    name = "head_loss"

    def __init__(
        self,
        shape: Sequence[int],
        convolution: tuple[Tensor, tuple[Tensor, Tensor, float], str],
        classifier: tuple[Tensor, Tensor],
        running: Sequence[Running],
        threads: int,
        bf16: bool,
    ) -> None:
        weight, bias = classifier
        self._classes, features = weight.shape
        kept = [shape[0] * features, shape[0] * features, shape[0] * self._classes]
        super().__init__(shape, *convolution, running, threads, bf16, classifier, kept)
        sizes = shape[0], features, self._classes
        self._of_classifier = _core.ClassifierLoss(sizes, weight.data_ptr(), bias.data_ptr(), threads)
        self._features_form = memory.flat(kept[0])
        self.y_shape = torch.Size(())
        self.link = _core.HeadLossLink(self._layout(self._kept, self._running), self._core, self._of_classifier)

    def forward(self, x: Tensor, keep: bool, given: Any = None) -> tuple[Tensor, Tensor]:
        """See `Laid`. The result is the loss, a scalar; `given` are `HeadTargets`.

        Raises:
            InputError: a label that is no class.
        """
        labels, smoothing, mask, scale, correct = self.places_of(given)
        loss, kept = torch.empty((), dtype=torch.float32), memory.empty(self._kept_form)
        places = self._kept.addresses(kept)
        self._pool(x, places, places[2])
        self._of_classifier.forward(labels, smoothing, mask, scale, places[2:], loss.data_ptr(), correct)
        return loss, kept

    def places_of(self, given: HeadTargets) -> tuple[int, float, int, float, int]:
        """For the core.

        Raises:
            InputError: a label that is no class.
        """
        labels, smoothing, mask, scale, correct = given
        bad = self._of_classifier.find_bad_label(labels.data_ptr())
        if bad < len(labels):
            raise InputError(f"labels: expected 0 to {self._classes - 1}, got {int(labels[bad])}")
        return labels.data_ptr(), smoothing, 0 if mask is None else mask.data_ptr(), scale, correct.data_ptr()

    def _backward(self, grad: Tensor, x: Tensor, kept: Tensor, grad_x: int, gradients: list[int]) -> None:
        places, grad_features = self._kept.addresses(kept), memory.empty(self._features_form)
        self._of_classifier.backward(grad.data_ptr(), places[2:], [grad_features.data_ptr(), *gradients[3:]])
        self._pool_backward(grad_features.data_ptr(), x, places, [grad_x, *gradients[:3]])

    def _backward_watched(
        self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        *_, factors, grad_logits = self._kept.arrays(kept)
        with torch.enable_grad():
            leaves = leaves_of(x, *parameters)
            logits = F.linear(self._pool_watched(leaves) * factors.view(self._shape), *leaves[4:])
            found = torch.autograd.grad(logits, leaves, grad_logits.view(logits.shape) * grad)
            return gradients_for(x, found)
