"""Which network a later stage works on, and the trained supernet it may come from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import read_json
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.context import StageContext
from greedynas_fast.stages.train import STAGE, build, calibration
from greedynas_fast.supernet import Network, extract, recalibrate

BEST = "best"


def load_trained(context: StageContext) -> Algorithm1:
    """The finished training of this run.

    Raises:
        InputError: the supernet is not trained to the end.
    """
    state = context.load_checkpoint(STAGE)
    if state is None:
        raise InputError(f"{context.run.path}: no supernet is trained here yet. First: {context.command('train')}.")
    algorithm = build(context)
    algorithm.load_state_dict(state)
    if algorithm.stop_reason is None or algorithm.update_due:
        raise InputError(
            f"{context.run.path}: the supernet is at step {algorithm.step} of {algorithm.schedule.total_steps}. "
            f"First: {context.command('train')}."
        )
    return algorithm


def chosen_path(context: StageContext, text: str | None) -> tuple[npt.NDArray[np.uint8], str]:
    """A path and where it comes from.

    Args:
        context: the run.
        text: a path as text, `@file`, the name of a published network, or None or `best` for the search's best.

    Returns:
        The path, uint8 [L], and `search`, the published name, or `given`.

    Raises:
        InputError: no path of this space, or no search was done.
    """
    if text is None or text == BEST:
        if not context.run.best.is_file():
            raise InputError(
                f"{context.run.path}: no path was searched here yet. First: {context.command('search')}, "
                "or give a path."
            )
        return context.space.parse(str(read_json(context.run.best)["path"])), "search"
    words, origin = spaces.path_text(text)
    return context.space.parse(words), origin


def inherited(context: StageContext, path: npt.NDArray[np.uint8]) -> Network:
    """The network of a path with the supernet's weights, BN statistics recomputed on training images, in eval mode."""
    algorithm = load_trained(context)
    context.space.check(path, algorithm.allowed)
    network = extract(algorithm.net, path)
    images = calibration(
        context.data.train, context.config.search_stage.calibration_images, context.config.seed, context.device
    )
    recalibrate(network, images)
    return network
