#!/bin/sh
# Runs the measurements of docs/cuda.md on a machine with an NVIDIA GPU: run.sh DEST OUT [--dry-run] [options of run.py]
#
# DEST is the unpacked kit, OUT the folder for the results. The current directory is the checkout. PYTHON names the
# Python with PyTorch (default: python3). With --dry-run everything runs on the CPU with small sizes.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: run.sh DEST OUT [--dry-run] [--steps-seconds S] [--train-seconds S] [--total-seconds S] [--only STEP,...]" >&2
    exit 2
fi
python=${PYTHON:-python3}
dest=$(cd "$1" && pwd)
if [ ! -e "$dest/lib/libonnxruntime_providers_cuda.so" ]; then
    echo "error: $dest lacks the CUDA provider: unpack the last part of the kit first" >&2
    exit 1
fi
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
here=$(cd "$(dirname "$0")" && pwd)
libraries=$("$python" - <<'PY'
import glob
import importlib.util
import os

folders = []
torch = importlib.util.find_spec("torch")
if torch:
    folders.append(os.path.join(os.path.dirname(torch.origin), "lib"))
nvidia = importlib.util.find_spec("nvidia")
for root in nvidia.submodule_search_locations if nvidia else []:
    folders += sorted(glob.glob(os.path.join(root, "*", "lib")))
print(":".join(folders))
PY
)
LD_LIBRARY_PATH="$dest/lib:$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
D2O_ONNXRUNTIME="$dest/lib/libonnxruntime.so.1.31.1"
PYTHONPATH=$(printf %s: "$dest"/wheels/torch_fidelity-*.whl)$here
export LD_LIBRARY_PATH D2O_ONNXRUNTIME PYTHONPATH
export HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
exec "$python" "$here/run.py" "$dest" "$out" "$@"
