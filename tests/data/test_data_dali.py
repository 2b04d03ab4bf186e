"""The DALI back end: the same batches as the torch back end, and the same again from any start, rank and thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from greedynas_fast.data import Augment, draws
from greedynas_fast.data.dali import DaliSplit
from greedynas_fast.data.dali.finish import Finisher
from greedynas_fast.data.draws import Change
from greedynas_fast.data.files import ImageStore
from greedynas_fast.data.folder import scan
from greedynas_fast.data.folder_split import FolderFormat, FolderSplit
from greedynas_fast.data.images import BadFiles
from greedynas_fast.data.policies import draw_changes
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import CheckpointStore

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI (extra dali-cu12 or dali-cu13)")
# DALI's modules use what newer Pythons deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nvidia")

Open = Callable[..., tuple[Any, list[str]]]
RESOLUTION = 32
EVERYTHING = Augment(crop="random_resized", auto_augment="autoaugment", random_erasing=0.5)
AUGMENTS = [EVERYTHING, Augment(crop="pad", pad=5, auto_augment="randaugment"), Augment(crop="none")]


def photograph(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Smooth noise at several scales."""
    pixels = np.full((height, width, 3), 120.0)
    for cells, strength in ((3, 60), (8, 40), (20, 20)):
        noise = rng.normal(size=(3, cells, cells)).astype(np.float32)
        for channel in range(3):
            grown = Image.fromarray(noise[channel]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += strength * np.array(grown)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of several sizes and kinds in three classes, among them what DALI is not shown as it is."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for label in ("cat", "dog", "émeu"):
        (root / label).mkdir()
        for number in range(12):
            image = photograph(rng, *((90, 120), (75, 50), (40, 40))[number % 3])
            image.save(root / label / f"no {number:02d}.jpg", quality=90, progressive=number % 4 == 0)
    odd = photograph(rng, 60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    odd.save(root / "cat" / "no 01.jpg", exif=exif)
    odd.convert("CMYK").save(root / "cat" / "no 02.jpg")
    odd.convert("L").save(root / "dog" / "no 01.jpg")
    odd.quantize(64).save(root / "dog" / "no 02.png")
    odd.crop((0, 0, 1, 1)).save(root / "dog" / "no 03.bmp")
    return root


@pytest.fixture
def opened(photographs: Path) -> Open:
    def of(kind: type, root: Path = photographs, **options: Any) -> tuple[Any, list[str]]:
        notices: list[str] = []
        in_channels, workers = options.pop("in_channels", 3), options.pop("workers", 0)
        mean, std = torch.tensor([0.4, 0.5, 0.6])[:in_channels], torch.tensor([0.2, 0.25, 0.3])[:in_channels]
        bad_files = BadFiles("skip", 100, notices)
        store: ImageStore = scan(root, bad_files)
        form = FolderFormat(RESOLUTION, in_channels, mean, std, workers)
        return kind(store, np.arange(len(store)), form, bad_files, **options), notices

    return of


def load(split: Any, size: int = 12, start: int = 0, num: int = 3, augment: Augment = EVERYTHING, **rank: int) -> Any:
    return list(split.batches(size, start_step=start, num_steps=num, seed=3, augment=augment, **rank))


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) > 0 and all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)
    )


def grey_values(split: Any, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Pixels uint8 as int, [n, C, H, W], before they were normalised."""
    mean, std = (value[:, None, None] for value in (split._form.mean, split._form.std))
    return torch.cat([((images * std + mean) * 255).round().int() for images, _ in batches])


def difference(opened: Open, augment: Augment | None, in_channels: int = 3) -> Tensor:
    """How far the back ends are apart in grey values, [n, C, H, W]; labels and form are compared here."""
    found = []
    for kind in (DaliSplit, FolderSplit):
        split, notices = opened(kind, in_channels=in_channels)
        batches = list(split.sequential(13)) if augment is None else load(split, augment=augment)
        found.append((grey_values(split, batches), torch.cat([labels for _, labels in batches])))
        assert batches[0][0].dtype == torch.float32
        assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
        assert notices == []
    assert torch.equal(found[0][1], found[1][1])
    return (found[0][0] - found[1][0]).abs()


@pytest.mark.parametrize("in_channels", [3, 1])
def test_evaluation_is_the_torch_back_ends(opened: Open, in_channels: int) -> None:
    apart = difference(opened, None, in_channels)
    # Both decode to the same pixels. Pillow rounds between the directions of resizing, DALI only at the end; grey is
    # mixed before resizing in one, and after it in the other.
    assert apart.max() <= (1 if in_channels == 3 else 2)
    assert apart.float().mean() < 0.3


@pytest.mark.parametrize("in_channels", [3, 1])
@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_training_is_the_torch_back_ends(opened: Open, crop: Any, in_channels: int) -> None:
    apart = difference(opened, Augment(crop=crop, random_erasing=0.5), in_channels)
    assert apart.float().mean() < 0.3
    if crop == "random_resized":
        # At the border of a cut-out DALI's filter repeats the last pixel, and Pillow's ends there.
        assert apart.max() <= 8
        apart = apart[..., 1:-1, 1:-1]
    assert apart.max() <= (1 if in_channels == 3 else 2)


@pytest.mark.parametrize("name", ["autoaugment", "randaugment", "trivialaugment", "autoaugment_cifar10"])
def test_changes_are_the_torch_back_ends(opened: Open, name: Any) -> None:
    # Pillow changes both, but some changes (equalize, solarize, posterize) blow a difference of 1 up.
    apart = difference(opened, Augment(crop="pad", auto_augment=name))
    assert apart.float().mean() < 1.5
    assert (apart <= 1).float().mean() > 0.9


@pytest.mark.parametrize("name", ["autoaugment", "randaugment", "trivialaugment", "autoaugment_cifar10"])
@pytest.mark.parametrize("in_channels", [3, 1])
def test_dalis_own_changes_are_near(opened: Open, name: Any, in_channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_equalize(*of: Any) -> tuple[Change, ...]:  # which is another function
        return tuple(change for change in draw_changes(*of) if change.name != "Equalize")

    monkeypatch.setattr(draws, "draw_changes", without_equalize)
    augment = Augment(crop="pad", auto_augment=name, random_erasing=0.5)
    splits = [opened(DaliSplit, in_channels=in_channels, own_changes=own)[0] for own in (True, False)]
    own, pillow = (grey_values(split, load(split, num=6, augment=augment)) for split in splits)
    apart = (own - pillow).abs()
    # The same operations with the same magnitudes; solarize and posterize blow a difference of 1 up.
    assert apart.float().mean() < 2.5
    assert (apart <= 2).float().mean() > 0.9
    assert not torch.equal(own, pillow)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("own", [False, True])
def test_any_start_thread_and_rank_give_the_same(opened: Open, augment: Augment, own: bool) -> None:
    split, _ = opened(DaliSplit, own_changes=own)
    whole = load(split, 13, 0, 6, augment)
    assert same(whole, load(split, 13, 0, 6, augment))
    assert same(whole[2:], load(split, 13, 2, 4, augment))
    assert same(whole, load(opened(DaliSplit, workers=3, own_changes=own)[0], 13, 0, 6, augment))
    for num_ranks in (2, 5):
        ranks = [load(split, 13, 0, 6, augment, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        joined = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)]
        assert same(whole, joined)
    assert not same(whole[:3], whole[3:])


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("own", [False, True])
def test_goes_on_from_dalis_checkpoint(opened: Open, augment: Augment, own: bool, tmp_path: Path) -> None:
    split, _ = opened(DaliSplit, own_changes=own)
    assert split.state_dict(0) == {}
    whole = load(split, 5, 0, 9, augment)
    list(split.sequential(5))  # is no training
    assert [split.state_dict(step)["iteration"] for step in (7, 8, 9)] == [9, 10, 11]  # DALI's first two are no images
    assert split.state_dict(10) == {}
    store = CheckpointStore(tmp_path)
    store.save(4, {"data": interrupted(split, augment)})
    _, saved = store.load_latest() or (0, {})
    state = saved["data"]
    assert (state["step"], state["iteration"]) == (4, 6)
    for options in ({}, {"workers": 2}):
        other, notices = opened(DaliSplit, own_changes=own, **options)
        other.load_state_dict(state)
        assert other.state_dict(4) == state
        ranks = [load(other, 5, 4, 5, augment, rank=rank, num_ranks=2) for rank in range(2)]
        assert same(whole[4:], [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)])
        assert same(whole[4:], load(other, 5, 4, 5, augment))
        assert other.state_dict(9)["iteration"] == 6 + 2 + 5
        assert same(whole[:3], load(other, 5, 0, 3, augment))  # from the beginning, as it is no batch of step 4
        assert other.state_dict(3)["iteration"] == 2 + 3
        assert notices == []


def interrupted(split: Any, augment: Augment) -> dict[str, Any]:
    """The state before step 4 of a training that has asked for the batch of step 4 already."""
    for step, _ in enumerate(split.batches(5, start_step=0, num_steps=9, seed=3, augment=augment)):
        if step == 4:
            break
    state: dict[str, Any] = split.state_dict(4)
    return state


@pytest.mark.parametrize(
    ("augment", "change", "reason"),
    [
        (Augment(crop="pad", pad=4), {}, "recognize"),
        (EVERYTHING, {"checkpoint": b"none"}, "deserialize"),
        (EVERYTHING, {"iteration": 1}, "it began with its batch 6, not with 1"),
    ],
)
def test_a_checkpoint_that_dali_does_not_take_up(
    opened: Open, augment: Augment, change: dict[str, Any], reason: str
) -> None:
    split, _ = opened(DaliSplit)
    whole = load(split, 5, 0, 9)
    state = {**interrupted(split, augment), **change}
    other, notices = opened(DaliSplit)
    other.load_state_dict(state)
    assert same(whole[4:], load(other, 5, 4, 5))
    (notice,) = notices
    assert notice.startswith("DALI does not go on from its checkpoint: ")
    assert reason in notice


def test_parts(opened: Open) -> None:
    split, _ = opened(DaliSplit)
    part = split.select(np.array([30, 3, 17]))
    assert part.labels.tolist() == [2, 0, 1]
    images, _ = split.tensors()
    assert torch.equal(part.tensors()[0], images[[30, 3, 17]])
    assert part.names() == [split.names()[position] for position in (30, 3, 17)]
    assert part.names()[0] == os.path.join("émeu", "no 04.jpg")
    plain = split.with_format(split._form._replace(mean=torch.zeros(3), std=torch.full((3,), 1 / 255)))
    assert torch.equal(plain.tensors()[0].round(), plain.tensors()[0])


def tasks() -> int:
    """Threads of this process, also those that are not Python's."""
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_giving_up_early_leaves_no_thread(opened: Open) -> None:
    split, _ = opened(DaliSplit, workers=2)
    load(split, num=1)  # what DALI starts once stays
    before = tasks()
    for end in ("close", "interrupt", "drop", "never started"):
        iterator = split.batches(6, start_step=0, num_steps=1000, seed=0, augment=EVERYTHING)
        if end != "never started":
            next(iterator)
            assert tasks() > before
        if end == "close":
            iterator.close()
        elif end == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                iterator.throw(KeyboardInterrupt)
        del iterator
        deadline = time.monotonic() + 10  # the system forgets a thread a little after it has ended
        while tasks() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert tasks() <= before, end
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dali")]


def test_process_ends_in_the_middle(photographs: Path) -> None:
    code = f"""
import signal, os, sys
import numpy as np, torch
from pathlib import Path
from greedynas_fast.data import Augment
from greedynas_fast.data.dali import DaliSplit
from greedynas_fast.data.folder import scan
from greedynas_fast.data.folder_split import FolderFormat
from greedynas_fast.data.images import BadFiles
bad_files = BadFiles("skip", 9, [])
store = scan(Path({str(photographs)!r}), bad_files)
form = FolderFormat(32, 3, torch.zeros(3), torch.ones(3), 2)
split = DaliSplit(store, np.arange(len(store)), form, bad_files)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
kept = split.batches(6, start_step=0, num_steps=10**9, seed=0, augment=Augment())
for number, batch in enumerate(kept):
    if number == 5:
        os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


def test_an_error_of_the_store_comes_through(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    split, _ = opened(DaliSplit)

    def read(index: int) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(type(split._store), "read", lambda self, index: read(index))
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        load(split)
    assert threading.active_count() == before


def test_what_is_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    split, _ = opened(DaliSplit)
    with pytest.raises(InputError, match=r"augment\.auto_augment: DALI does not have augmix; set data\.backend to"):
        split.batches(4, start_step=0, num_steps=1, seed=0, augment=Augment(auto_augment="augmix"))
    with pytest.raises(InputError, match=r"dtype: expected torch\.float32 on the CPU, got torch\.bfloat16"):
        opened(DaliSplit, dtype=torch.bfloat16)
    assert load(split, num=0) == []
    assert load(split.in_dtype(torch.bfloat16))[0][0].dtype is torch.float32  # on a CPU
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(InputError, match=r"needs the package nvidia\.dali: pip install 'greedynas_fast\[dali-cu13\]'"):
        opened(DaliSplit)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there(opened: Open) -> None:
    split, _ = opened(DaliSplit, device_id=0)
    split = split.in_dtype(torch.bfloat16)
    assert split._dtype is torch.bfloat16
    assert split.select(np.arange(2))._dtype is torch.bfloat16
    with pytest.raises(InputError, match="DALI cannot start on CUDA device 0"):
        load(split)


def test_finishing_on_a_device_is_finishing_on_the_cpu() -> None:
    # The code for a device, run on the CPU: it needs nothing of CUDA.
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))
    changes: list[tuple[Change, ...]] = [
        (Change("Rotate", 20.0), Change("Invert", 0.0)),
        (),
        (Change("Equalize", 0.0),),
    ]
    changes = [changes[row % 3] for row in range(20)]
    boxes = np.array([[3, 4, 5, 6], [0, 0, 0, 0]] * 10, dtype=np.int32)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    with ThreadPoolExecutor(2) as threads:
        cpu, device, half = (
            Finisher(mean, std, on_device, dtype).finish(pixels.clone(), changes, boxes, threads)
            for on_device, dtype in ((False, torch.float32), (True, torch.float32), (True, torch.bfloat16))
        )
    assert torch.equal(cpu, device)
    assert torch.equal(half, cpu.to(torch.bfloat16))
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert (cpu[::2, :, 3:8, 4:10] == 0).all()
    assert torch.equal(cpu[1::3].permute(0, 2, 3, 1)[0, 0, 0], (pixels[1, 0, 0] - mean * 255) / (std * 255))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("own", [False, True])
def test_gpu_is_the_cpu(opened: Open, augment: Augment, own: bool) -> None:
    on_cpu, _ = opened(DaliSplit, own_changes=own)
    on_gpu, _ = opened(DaliSplit, own_changes=own, device_id=0, dtype=torch.bfloat16)
    a, b = load(on_cpu, augment=augment), load(on_gpu, augment=augment)
    assert same(b, load(on_gpu, augment=augment))
    for (images, labels), (images_gpu, labels_gpu) in zip(a, b, strict=True):
        assert images_gpu.is_cuda
        assert images_gpu.dtype == torch.bfloat16
        assert images_gpu.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, labels_gpu)
        # nvJPEG's inverse transform is another one, so a few grey values (1/64 each) apart.
        assert (images - images_gpu.float().cpu()).abs().mean() < 0.1


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Makes DALI fail for good on the files in the list, as late as it may."""
    from greedynas_fast.data.dali.pipeline import Pipeline

    hated: list[bytes] = []
    put, take = Pipeline.put, Pipeline.take

    def failing_put(self: Any, encoded: Any, *others: Any) -> None:
        if getattr(self, "dead", False):
            raise RuntimeError("Current pipeline object is no longer valid.")
        self.queue = [*getattr(self, "queue", []), any(data in hated for data in encoded)]
        put(self, encoded, *others)

    def failing_take(self: Any) -> Tensor:
        if self.queue.pop(0):
            self.dead = True
            raise RuntimeError("Critical error in pipeline:\nencountered:\n\nthe file is strange.\nCurrent pipeline")
        return take(self)

    monkeypatch.setattr(Pipeline, "put", failing_put)
    monkeypatch.setattr(Pipeline, "take", failing_take)
    return hated


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("own", [False, True])
def test_a_file_that_dali_cannot_decode(opened: Open, fragile: list[bytes], augment: Augment, own: bool) -> None:
    split, notices = opened(DaliSplit, own_changes=own)
    whole = load(split, 5, 0, 14, augment)
    names = [split._store.name(index) for index in (5, 20)]
    fragile.extend(Path(name).read_bytes() for name in names)
    again = load(split, 5, 0, 14, augment)
    # Pillow decodes them to the same pixels, which go the same way; nothing else changes.
    assert same(whole, again)
    assert same(whole[2:4], load(split, 5, 2, 2, augment))  # without another word
    assert sorted(notices) == [
        f"Image file {name} is decoded without DALI, which cannot: the file is strange." for name in names
    ]
