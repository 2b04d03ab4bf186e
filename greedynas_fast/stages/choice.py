"""Which network a later stage works on, and the trained supernet it may come from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from greedynas_fast import spaces
from greedynas_fast.config import RetrainConfig
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import read_json
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.architecture import Architecture, PathNetwork, TimmModel, check_timm_name
from greedynas_fast.stages.context import StageContext
from greedynas_fast.stages.train import STAGE, build, calibration
from greedynas_fast.supernet import Network, extract, recalibrate

BEST = "best"


def load_trained(context: StageContext) -> Algorithm1:
    """The finished training of this run; its supernet has the averaged weights if there is an average.

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
    algorithm.optimizer.use_average()
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


def chosen_network(context: StageContext) -> tuple[Architecture, str]:
    """What `retrain` trains, at its resolution, and where it comes from.

    Returns:
        The architecture, and `timm` or what `chosen_path` says.

    Raises:
        InputError: no such network, a resolution that it cannot take, or a reference in the run of a supernet.
    """
    config, space = context.config.retrain, context.space
    if config.model is None:
        path, origin = chosen_path(context, config.path)
        network: Architecture = PathNetwork(space, path)
    else:
        _refuse_supernet(context, config.model)
        check_model(config)
        network, origin = TimmModel(config.model, space.num_classes, space.in_channels, space.resolution), "timm"
    try:
        return network.at(config.resolution or space.resolution), origin
    except InputError as error:
        raise InputError(f"retrain.{'model' if config.resolution is None else 'resolution'}: {error}") from None


def check_model(config: RetrainConfig) -> None:
    """Whether there is a model of timm by the configured name, if any.

    Raises:
        InputError: there is none.
    """
    if config.model is not None:
        try:
            check_timm_name(config.model)
        except InputError as error:
            raise InputError(f"retrain.model: {error}") from None


def _refuse_supernet(context: StageContext, model: str) -> None:
    """Raises where a reference would take the place of the run's own network."""
    if any(context.run.checkpoints(STAGE).glob("*.pt")):
        raise InputError(
            f"retrain.model: {context.run.path} holds a supernet; a reference is trained in a run folder of its own, "
            f"such as {context.run.path.with_name(model)}."
        )


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
