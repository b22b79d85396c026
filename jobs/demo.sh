#!/usr/bin/env bash
# The whole method on this machine: synthetic images, shards, training on 2 ranks, inference on 2 ranks, scores, pictures.
#   bash jobs/demo.sh [--fresh] [options of `segdist pipeline`]
# Running it again reuses what is finished; --fresh starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source jobs/setup.sh
setup_venv
exec .venv/bin/segdist pipeline --config jobs/demo.toml "$@"
