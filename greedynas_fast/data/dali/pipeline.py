"""The DALI graph: decode a region, resize, pad and change it. It draws nothing; its only state is how far it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from greedynas_fast.data.dali import operators
from greedynas_fast.data.dali.geometry import Region
from greedynas_fast.data.policies import Change
from greedynas_fast.errors import InputError

# Batches that DALI works on at a time: while one is taken out, the next is being decoded.
DEPTH = 2
# The fields of `Region` as inputs of the graph.
_NUMBERS = {
    "start": np.int32,
    "shape": np.int32,
    "show_from": np.float32,
    "show_to": np.float32,
    "window": np.int32,
}
# The smallest portable pixmap.
ONE_PIXEL = b"P6 1 1 255\n\0\0\0"
ONE_REGION = Region((0, 0), (1, 1), (0.0, 0.0), (1.0, 1.0), (0, 0))


class PipelineForm(NamedTuple):
    """What one graph is built for.

    Attributes:
        max_batch_size: images a batch at most.
        resolution: height and width of the result.
        in_channels: 1 or 3.
        padded: whether results may show more than there is, which is black.
        changed: whether DALI carries out the changes of automatic augmentation.
        num_threads: decoding threads.
        device_id: number of the CUDA device; None for the CPU.
    """

    max_batch_size: int
    resolution: int
    in_channels: int
    padded: bool
    changed: bool
    num_threads: int
    device_id: int | None


class PipelineState(NamedTuple):
    """How far a pipeline is.

    Attributes:
        iteration: DALI's number of the batch that it gives out next.
        checkpoint: DALI's own, from which a pipeline of the same graph goes on with that number.
    """

    iteration: int
    checkpoint: bytes


def require() -> str:
    """Imports DALI, to find out whether it is there.

    Returns:
        Its version.

    Raises:
        InputError: it is not installed, or cannot be loaded.
    """
    try:
        import nvidia.dali as dali
    except ImportError as error:
        raise InputError(
            "the DALI data back end needs the package nvidia.dali: pip install 'greedynas_fast[dali-cu13]' (or "
            f"dali-cu12). Importing it failed: {error}."
        ) from error
    return str(dali.__version__)


class Pipeline:
    """Encoded images and regions in, pixels out, in the same order.

    Building one takes some milliseconds; its threads end with `close`.

    Attributes:
        state: how far it is, after the batch that was taken last.
        refusal: why DALI began anew and did not go on from the state that it was given; None if it did.
    """

    def __init__(self, form: PipelineForm, state: PipelineState | None = None) -> None:
        """Builds the graph and starts its threads.

        Args:
            form: what the graph is built for.
            state: to go on from; None to begin.

        Raises:
            InputError: DALI is missing, or cannot use the device.
        """
        require()
        self._form, self._encoded = form, _Encoded()
        self.refusal: str | None = None
        try:
            self._pipe = self._built(state)
            # DALI begins with DEPTH batches at once; afterwards they can be put in one by one.
            for _ in range(DEPTH):
                self._feed([ONE_PIXEL], [ONE_REGION], [()])
            self._pipe.schedule_run()
            for _ in range(DEPTH):
                self._pipe.share_outputs()
                self._pipe.release_outputs()
            began = self._encoded.first
            self.state = PipelineState(began + DEPTH, self._pipe.checkpoint())
            if state is not None and self.refusal is None and began != state.iteration:
                self.refusal = f"it began with its batch {began}, not with {state.iteration}"
        except RuntimeError as error:
            where = "the CPU" if form.device_id is None else f"CUDA device {form.device_id}"
            raise InputError(f"DALI cannot start on {where}: {reason(error)}.") from error

    def put(self, encoded: Sequence[bytes], regions: Sequence[Region], changes: Sequence[tuple[Change, ...]]) -> None:
        """Starts the work on a batch; at most `DEPTH` may be under way. The bytes must stay alive until `take`.

        Args:
            encoded: the files.
            regions: what is shown of each.
            changes: of each image; nothing is done with them where the form does not say `changed`.

        Raises:
            RuntimeError: DALI failed; this pipeline is of no more use.
        """
        self._feed(encoded, regions, changes)
        self._pipe.schedule_run()

    def take(self) -> Tensor:
        """The oldest batch, uint8 [B, resolution, resolution, C], on the device.

        Raises:
            RuntimeError: DALI failed on it; this pipeline is of no more use.
        """
        (output,) = self._pipe.share_outputs()
        if self._form.device_id is None:
            pixels = torch.from_numpy(np.array(output.as_tensor()))
        else:
            pixels = from_dlpack(output.as_tensor()).clone()
            torch.cuda.current_stream(self._form.device_id).synchronize()  # DALI may now use the memory again
        self._pipe.release_outputs()
        self.state = PipelineState(self.state.iteration + 1, self._pipe.checkpoint())  # 50 us
        return pixels

    def close(self) -> None:
        """Ends the work and the threads; whatever is under way is lost."""
        self._pipe = None

    def _built(self, state: PipelineState | None) -> Any:
        if state is not None:
            try:
                return _build(self._form, self._encoded, state.checkpoint)
            except (RuntimeError, ValueError) as error:  # of another graph, or of another version of DALI
                self.refusal = reason(error)
        return _build(self._form, self._encoded, None)

    def _feed(self, encoded: Sequence[bytes], regions: Sequence[Region], changes: Sequence[tuple[Change, ...]]) -> None:
        self._encoded.batches.append([np.frombuffer(data, dtype=np.uint8) for data in encoded])
        for (name, kind), values in zip(_NUMBERS.items(), zip(*regions, strict=True), strict=True):
            if name != "window" or self._form.padded:
                self._pipe.feed_input(name, np.array(values, dtype=kind))
        if self._form.changed:
            for name, numbers in operators.numbers(changes, self._form.resolution).items():
                self._pipe.feed_input(name, numbers)


def as_pixmap(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels uint8 [H, W, 3] as a file that loses nothing, for images that something else has decoded."""
    height, width, _ = pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + pixels.tobytes()


class _Encoded:
    """The encoded images, for DALI to ask for a batch by its number; they are handed out in the order of `batches`.

    An input that is fed by hand would do as well, but DALI restores the number for those alone that it asks.
    """

    def __init__(self) -> None:
        self.batches: deque[list[npt.NDArray[np.uint8]]] = deque()
        self.first = -1  # the first number; -1 before DALI has asked

    def __call__(self, iteration: int) -> list[npt.NDArray[np.uint8]]:
        if self.first < 0:
            self.first = iteration
        return self.batches.popleft()


def _build(form: PipelineForm, encoded: _Encoded, checkpoint: bytes | None) -> Any:
    from nvidia.dali import pipeline_def

    # Conditional execution rewrites the functions that define a graph, so it is on only where it is used.
    defined = pipeline_def(
        _graph,
        batch_size=form.max_batch_size,
        num_threads=form.num_threads,
        device_id=form.device_id,
        prefetch_queue_depth=DEPTH,
        enable_conditionals=form.changed,
        enable_checkpointing=True,
        checkpoint=checkpoint,
    )
    graph = defined(form, encoded)
    graph.build()
    return graph


def _graph(form: PipelineForm, source: _Encoded) -> Any:
    from nvidia.dali import fn, types

    size = form.resolution
    # Only the decoder is placed: what follows works where its input lies.
    encoded = fn.external_source(name="encoded", source=source, dtype=types.UINT8, ndim=1, no_copy=True)
    numbers = {
        name: fn.external_source(name=name, dtype=types.FLOAT if kind is np.float32 else types.INT32, ndim=1)
        for name, kind in _NUMBERS.items()
        if name != "window" or form.padded
    }
    pixels = fn.decoders.image_slice(
        encoded,
        device="cpu" if form.device_id is None else "mixed",
        start=numbers["start"],
        shape=numbers["shape"],
        axes=[0, 1],
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,  # as Pillow
    )
    pixels = fn.resize(
        pixels,
        size=[size, size],
        roi_start=numbers["show_from"],
        roi_end=numbers["show_to"],
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    if form.padded:
        pixels = fn.slice(
            pixels,
            start=numbers["window"],
            shape=[size, size],
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=[0],
        )
    if form.in_channels == 1:
        pixels = fn.color_space_conversion(pixels, image_type=types.RGB, output_type=types.GRAY)
    if form.changed:
        for change in operators.declare():
            pixels = operators.carry_out(pixels, change, form.in_channels, form.device_id is not None)
    return pixels


def reason(error: Exception) -> str:
    """The sentence in a message of DALI that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # An operator's error is wrapped into several lines about where it stands in the graph.
    if "encountered:" in lines[:-1]:
        return lines[lines.index("encountered:") + 1].rstrip(".")
    return lines[0].rstrip(".") if lines else type(error).__name__
