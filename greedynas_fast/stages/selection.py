"""How good the network is while it is retrained, and the best of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from greedynas_fast.data import DataBundle, Split
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import Interrupt
from greedynas_fast.runtime.atomic import remove_leftovers
from greedynas_fast.stages.architecture import Architecture
from greedynas_fast.stages.context import StageContext
from greedynas_fast.stages.evaluate import measure
from greedynas_fast.stages.model_files import save_network
from greedynas_fast.stages.recipe import Recipe

BEST = "best"


class Selection:
    """Measures averaged and raw weights on the test part every few epochs; keeps the best averaged ones in a folder.

    The best is a by-product: it was chosen on the images that it is measured on, which its `config.json` says. The
    figure to report is that of the last network.

    Attributes:
        last: the newest row of figures; None before the first.
        best: the row of the best averaged weights; None before the first.
    """

    def __init__(
        self, context: StageContext, architecture: Architecture, recipe: Recipe, data: DataBundle, facts: dict[str, Any]
    ) -> None:
        """Nothing measured yet.

        Args:
            context: the run.
            architecture: of the network.
            recipe: what trains it.
            data: the images at the resolution of training.
            facts: what `config.json` of a kept network says besides.

        Raises:
            InputError: there is to be measured, and the data has no test part.
        """
        self._context, self._architecture, self._recipe, self._facts = context, architecture, recipe, facts
        self.every_epochs = context.config.retrain.eval_every_epochs
        self.last: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self._split: Split | None = data.test if self.every_epochs else None
        if self.every_epochs and data.test is None:
            raise InputError(
                f"retrain.eval_every_epochs is {self.every_epochs}, but the data has no test part to measure on; 0 "
                "measures nothing."
            )
        self._folder = context.run.retrain / BEST
        if self._folder.is_dir():
            remove_leftovers(self._folder)

    def measure(self, step: int, epoch: float, interrupt: Interrupt | None = None) -> dict[str, Any]:
        """The figures after a step, and the network kept (by rank 0) if it is the best so far; a collective.

        Args:
            step: steps done.
            epoch: the same in epochs.
            interrupt: asks to stop, if it is asked.

        Returns:
            `step`, `epoch`, `images`, `top1`, `top5`, `loss` of the averaged weights (of the raw ones where the recipe
            keeps no average), `raw_top1`, `raw_top5`, `raw_loss`.

        Raises:
            KeyboardInterrupt: one of the ranks is asked to stop, and nothing has changed; raised on all.
        """
        figures = self._figures(self._recipe.result, interrupt)
        raw = figures if self._recipe.average is None else self._figures(self._recipe.network, interrupt)
        self._recipe.network.train()
        row = {"step": step, "epoch": epoch, **figures}
        row |= {f"raw_{name}": raw[name] for name in ("top1", "top5", "loss")}
        self.last = row
        if self.best is None or row["top1"] > self.best["top1"]:
            self.best = row
            if self._context.world.is_main:
                self._keep(row)
        return row

    def _figures(self, network: nn.Module, interrupt: Interrupt | None) -> dict[str, Any]:
        assert self._split is not None
        context = self._context
        if context.world.size > 1:
            # Parameters are the same on all ranks; running statistics are each rank's own, and those of rank 0 count.
            buffers = list(network.buffers())
            for buffer, first in zip(buffers, context.world.broadcast([b.cpu() for b in buffers]), strict=True):
                buffer.copy_(first)
        batch_size = context.config.evaluate.batch_size
        return measure(network, self._split, batch_size, context.device, context.world, interrupt)

    def _keep(self, row: dict[str, Any]) -> None:
        chosen = {
            "chosen_on": "test",
            "chosen_by": "highest top-1 accuracy of the averaged weights on the test part, of all epochs measured; the "
            "accuracy is therefore optimistic",
        }
        self._folder.parent.mkdir(exist_ok=True)
        extra = {**self._facts, "accuracy": row["top1"], "step": row["step"], "epoch": row["epoch"], **chosen}
        save_network(detached(self._architecture, self._recipe.result), self._folder, self._architecture, extra)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"last": self.last, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the selection that gave `state` stood."""
        self.last, self.best = state["last"], state["best"]


def detached(architecture: Architecture, network: nn.Module) -> nn.Module:
    """A network in evaluation mode on the CPU, with the weights of another of the same architecture."""
    copy = architecture.build()
    copy.load_state_dict({name: value.cpu() for name, value in network.state_dict().items()})
    return copy.eval()
