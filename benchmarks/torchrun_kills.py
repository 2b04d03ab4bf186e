"""Two ranks under torchrun, one of which is killed five times at random moments: the run ends as if nothing had been.

    OMP_NUM_THREADS=1 python benchmarks/torchrun_kills.py WORK_DIR

Runs `torchrun --nproc-per-node 2 -m greedynas_fast run` on the embedded sample undisturbed, then again with kill -9 of
one worker at five random moments of as long a time. One JSON document on standard output; exits with 1 if the weights
or the figures differ.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KILLS = 5
SEED = 0


def start(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    words = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--max-restarts", str(2 * KILLS), "-m", "greedynas_fast", "run", "--preset", "sample", "--run-dir", "run"]
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(words, cwd=folder, stdout=said, stderr=said)


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The process numbers of the ranks that are at work."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"greedynas_fast" in Path(f"/proc/{child}/cmdline").read_bytes()]


def kill_at(process: subprocess.Popen[bytes], moments_s: list[float], chance: random.Random) -> int:
    """Kill one worker at each of the moments, counted from now; how many there were to kill."""
    began_s, killed = time.monotonic(), 0
    for moment in moments_s:
        time.sleep(max(0.0, began_s + moment - time.monotonic()))
        alive = workers(process) if process.poll() is None else []
        if alive:
            os.kill(chance.choice(alive), signal.SIGKILL)
            killed += 1
    return killed


def finish(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """Figures of a run, and the hashes of its weights."""
    if process.wait() != 0:
        raise SystemExit(f"torchrun ended with {process.returncode}: see {folder / 'said.txt'}")
    result = json.loads((folder / "run/result.json").read_text())
    weights = json.loads((folder / "run/retrain/config.json").read_text())["weights_sha256"]
    return {"top1": result["top1"], "path": result["path"], "weights_sha256": weights}


def main(work: Path) -> int:
    chance = random.Random(SEED)
    began_s = time.monotonic()
    undisturbed = finish(start(work / "undisturbed"), work / "undisturbed")
    took_s = time.monotonic() - began_s
    moments_s = sorted(chance.uniform(0.05, 0.95) * took_s for _ in range(KILLS))
    began_s, process = time.monotonic(), start(work / "killed")
    killed = kill_at(process, moments_s, chance)
    disturbed = finish(process, work / "killed")
    seconds = {"undisturbed": round(took_s, 1), "killed": round(time.monotonic() - began_s, 1)}
    print(json.dumps({"kills": killed, "moments_s": moments_s, "seconds": seconds, **undisturbed}, indent=1))
    if disturbed != undisturbed:
        print(f"they differ: {disturbed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
