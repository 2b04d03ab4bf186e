"""Measures the path filter on a GPU: scores, rejection, proposals, keys; one JSON row a measurement.

    python benchmarks/gpu_filter.py [--output FILE]

A figure is printed only after its kernel was checked: float32 scores against the CPU engine bit for bit, bf16 against a
band, proposals and sorted keys against the CPU. Times are CUDA events around queued work, after warming up; rejection
and the torch module, which wait for the device, are timed by the clock. Sizes are those of the space mb-se: 21 layers,
13 operations, 128 hidden units.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from greedynas_fast import _core, paths
from greedynas_fast.filter import FilterEngine, PathFilter
from greedynas_fast.filter.cuda_backend import CudaBackend
from greedynas_fast.filter.tensors import filter_tensors
from greedynas_fast.paths import cuda as paths_cuda

NUM_OPS = (13,) * 21
HIDDEN = 128
BATCH = 1 << 18
BF16_BAND = 2e-3  # measured with the CPU engine in bf16: 3e-4, where scores spread by 0.1
QUANTILE = 0.99  # of proposals that are rejected


def percentiles(seconds: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(seconds, [20, 50, 80])
    return {"p20_ms": low * 1e3, "p50_ms": middle * 1e3, "p80_ms": high * 1e3}


def by_events(work: Callable[[], object], repeats: int = 20) -> list[float]:
    """Seconds of each call on the device."""
    for _ in range(3):
        work()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def by_clock(work: Callable[[], object], repeats: int = 7) -> list[float]:
    """Seconds of each call, the device's work included."""
    work()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def lively_filter() -> PathFilter:
    net = PathFilter(NUM_OPS, HIDDEN, seed=1, embedding_std=1.5)
    with torch.no_grad():
        net.fc2.weight.mul_(8)
    return net


def check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"no figures: {what}")


class Report:
    """Rows so far, each printed as it comes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, kernel: str, provider: str, items: int, seconds: list[float], **more: object) -> None:
        rate = items / float(np.median(seconds))
        row = {
            "kernel": kernel,
            "provider": provider,
            "items": items,
            "items_per_s": rate,
            **percentiles(seconds),
            **more,
        }
        self.rows.append(row)
        print(f"{kernel:12} {provider:22} {rate / 1e6:10.2f} M/s  {json.dumps(more) if more else ''}", flush=True)


def measure_scores(report: Report, net: PathFilter, device: torch.device) -> None:
    batch = np.random.default_rng(0).integers(0, NUM_OPS, (BATCH, len(NUM_OPS)), dtype=np.uint8)
    on_device = torch.from_numpy(batch).to(device)
    expected = FilterEngine(net, "cpu").log_prob_weak(batch[:4096])
    for precision in ("float32", "bf16"):
        backend = CudaBackend(NUM_OPS, HIDDEN, precision, device)
        backend.load(filter_tensors(net))
        scores = backend.log_prob_weak(on_device)[:4096].cpu().numpy()
        error = float(np.abs(scores - expected).max())
        if precision == "float32":
            check(np.array_equal(scores.view(np.uint32), expected.view(np.uint32)), f"float32 is {error} from the CPU")
        check(error <= BF16_BAND, f"{precision} is {error} from the CPU's float32")

        def work(backend: CudaBackend = backend) -> object:
            return backend.log_prob_weak(on_device)

        report.add("score", f"cuda {precision}", BATCH, by_events(work), error=error)
    on_gpu = PathFilter(NUM_OPS, HIDDEN)
    on_gpu.load_state_dict(net.state_dict())
    on_gpu.to(device)
    flat = on_gpu.embedding.detach()
    layers = torch.arange(len(NUM_OPS), device=device)
    for dtype in (torch.float32, torch.bfloat16):
        lstm = on_gpu.lstm.to(dtype)
        lstm.flatten_parameters()
        table = flat.to(dtype)

        def peer(table: torch.Tensor = table, lstm: torch.nn.Module = lstm) -> object:
            with torch.no_grad():
                return lstm(table[layers, on_device[:65536].long()])[0]

        report.add("score", f"nn.LSTM {str(dtype)[6:]}", 65536, by_events(peer), note="LSTM alone, no head")


def measure_rejection(report: Report, net: PathFilter, device: torch.device) -> None:
    allowed = np.ones((len(NUM_OPS), NUM_OPS[0]), dtype=bool)
    for precision in ("float32", "bf16"):
        backend = CudaBackend(NUM_OPS, HIDDEN, precision, device)
        backend.load(filter_tensors(net))
        sample = backend.log_prob_weak(paths.propose(allowed, 9, 9, 0, 200_000)).cpu().numpy()
        threshold = float(np.quantile(sample, 1 - QUANTILE))

        def work(backend: CudaBackend = backend, threshold: float = threshold, wanted: int = 10_000) -> int:
            return backend.reject(allowed, 1, 0, 0, wanted, 10**8, threshold, 0)[2]

        accepted, _, proposals = backend.reject(allowed, 1, 0, 0, 100, 10**8, threshold, 0)
        scores = backend.log_prob_weak(paths.propose(allowed, 1, 0, 0, proposals)).cpu().numpy()
        expected = np.flatnonzero(scores.astype(np.float64) <= threshold)
        check(np.array_equal(accepted, expected.astype(np.uint64)), f"rejection in {precision} is not the plain loop")
        report.add("reject", f"cuda {precision}", work(), by_clock(work), accepted=10_000, quantile=QUANTILE)


def measure_paths(report: Report, device: torch.device) -> None:
    allowed = np.ones((len(NUM_OPS), NUM_OPS[0]), dtype=bool)
    count = 1 << 22
    drawn = paths_cuda.propose(allowed, 1, 0, 0, count, device)
    check(np.array_equal(drawn[-1000:].cpu().numpy(), paths.propose(allowed, 1, 0, count - 1000, 1000)), "proposals")
    report.add("propose", "cuda", count, by_events(lambda: paths_cuda.propose(allowed, 1, 0, 0, count, device)))
    keys = paths_cuda.pack(drawn)
    check(np.array_equal(keys[:1000].cpu().numpy(), paths.pack(drawn[:1000].cpu().numpy())), "pack")
    report.add("pack", "cuda", count, by_clock(lambda: paths_cuda.pack(drawn)))
    ordered = paths_cuda.sort_keys(keys).cpu().numpy()
    host = keys.cpu().numpy()
    check(np.array_equal(ordered, host[np.lexsort((host[:, 1], host[:, 0]))]), "sort")
    report.add("sort", "cuda", count, by_events(lambda: paths_cuda.sort_keys(keys)))
    report.add("unique", "cuda", count, by_clock(lambda: paths_cuda.unique_keys(keys)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    output: Path | None = parser.parse_args().output
    if not torch.cuda.is_available():
        print("torch finds no CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    machine = {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "architectures": _core.build_info()["cuda_architectures"],
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(machine), flush=True)
    report = Report()
    net = lively_filter()
    measure_scores(report, net, device)
    measure_rejection(report, net, device)
    measure_paths(report, device)
    if output is not None:
        output.write_text(json.dumps({"machine": machine, "rows": report.rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
