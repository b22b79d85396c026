#!/usr/bin/env bash
# Sets up .venv and runs all tests; --quick skips the slow ones. Further arguments go to pytest.
#   bash tests/run.sh [--quick] [pytest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source jobs/setup.sh
source tests/system_packages.sh
selection=()
if [[ ${1:-} == --quick ]]; then
    shift
    selection=(-m "not slow")
else
    install_system_packages
fi
setup_venv test,onnx,tensorboard,remote,zarr,docs
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes for two cores; `-n 0` runs everything in one process, as a debugger needs.
exec .venv/bin/python -m pytest -n 2 "${selection[@]}" "$@"
