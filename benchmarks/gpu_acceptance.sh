#!/usr/bin/env bash
# Installs, tests and measures the CUDA part on a machine with a GPU, without network, in under ten minutes.
#
#     [OUT=folder] [PYTHON=python3] bash benchmarks/gpu_acceptance.sh
#
# Needs Python with torch, numpy, triton and pytest, the build requirements of pyproject.toml (scikit-build-core,
# pybind11, cmake, ninja), a C++20 compiler and nvcc. Logs and figures go to $OUT if it is set. Exits with 1 if anything
# failed; what follows a failed step is still tried.
set -uo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
out="${OUT:-$(mktemp -d)}"
mkdir -p "$out"
failed=()

step() { # name, seconds, command...
  local name="$1" limit="$2" began=$SECONDS
  shift 2
  printf '\n== %s\n' "$name"
  if timeout "$limit" "$@" 2>&1 | tee "$out/$name.log" | tail -n 60; then
    printf '== %s: passed in %ss\n' "$name" $((SECONDS - began))
  else
    printf '== %s: FAILED after %ss, see %s\n' "$name" $((SECONDS - began)) "$out/$name.log"
    failed+=("$name")
  fi
}

# -P keeps the source folder off the path: what is tested is what was installed.
step machine 60 "$python" -P -c '
import importlib.util, shutil, subprocess, sys
import torch
print(sys.version, "torch", torch.__version__, "CUDA", torch.version.cuda)
missing = [name for name in ("numpy", "triton", "pytest", "scikit_build_core", "pybind11") if importlib.util.find_spec(name) is None]
missing += [tool for tool in ("nvcc", "cmake", "ninja", "c++") if shutil.which(tool) is None]
assert not missing, f"missing: {missing}"
assert torch.cuda.is_available(), "torch finds no CUDA device"
print(torch.cuda.get_device_properties(0))
subprocess.run(["nvidia-smi"], check=False)
'
step install 300 "$python" -m pip install --no-build-isolation --no-deps -v . -C cmake.define.GREEDYNAS_CUDA=ON
step pytest 180 "$python" -P -m pytest tests/gpu -p no:cacheprovider \
  -W "ignore:The pynvml package is deprecated:FutureWarning"
step dali 120 "$python" -P -m pytest tests/data/test_data_dali.py -k gpu -p no:cacheprovider
step bench 120 "$python" -P benchmarks/gpu_filter.py --output "$out/gpu_filter.json"

if [ "${#failed[@]}" -gt 0 ]; then
  printf '\nFAILED: %s\n' "${failed[*]}"
  exit 1
fi
printf '\nall passed, results in %s\n' "$out"
