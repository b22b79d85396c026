#!/usr/bin/env bash
# Collect wheels of the packages missing on an offline machine with a GPU, Python 3.12 and torch.
# Usage: bash tests/benchmarks/gpu_wheels.sh [FOLDER]; default folder: wheels. Needs pip and a network. About 7 MiB.
#
# Assumes a torch image with Lightning, torchvision, matplotlib, rich and pytest. W&B is not collected, since the program
# runs without it.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-wheels}
python=${PYTHON:-python3}
platforms=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)
# Pinned in constraints.txt.
pinned=(tyro typeguard docstring_parser pydantic pydantic_core annotated-types typing-inspection typing_extensions
    webdataset braceexpand submitit cloudpickle imagecodecs pytest-timeout)
# Only for the comparisons.
peers=(monai==1.6.1 pytorch-ignite==0.5.5)
requirements=()
for name in "${pinned[@]}"; do
    requirements+=("$(grep -i "^$name==" constraints.txt)")
done
mkdir -p "$folder"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]/#/--platform=}" --dest "$folder" "${requirements[@]}" "${peers[@]}"
du -sh "$folder"
