"""Fails unless a finished `greedynas-fast run` reached what the README says: python check_run.py RUN SECONDS."""

import json
import sys
from pathlib import Path

MIN_TOP1 = 0.85
MAX_SECONDS = 480

run, seconds = Path(sys.argv[1]), int(sys.argv[2])
result = json.loads((run / "result.json").read_text())
print(f"greedynas-fast run: {seconds} s, top-1 {result['top1']:.3f} on {result['images']} {result['split']} images")
missing = [name for name in ("report.html", "best.json", "export/model.safetensors") if not (run / name).is_file()]
assert not missing, f"the run made no {missing}"
assert result["images"] == 1000
assert result["split"] == "test"
assert result["top1"] >= MIN_TOP1, f"expected top-1 of at least {MIN_TOP1}, got {result['top1']}"
assert seconds <= MAX_SECONDS, f"expected at most {MAX_SECONDS} s, took {seconds} s"
