#!/usr/bin/env bash
# The whole pipeline on this machine: synthetic images, shards, training and inference on 2 ranks, scores, pictures.
#   bash jobs/demo.sh [--fresh] [options of `segdist pipeline`]
# Run it again to resume, reusing finished work; --fresh starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source jobs/setup.sh
setup_venv
exec .venv/bin/segdist pipeline --config jobs/demo.toml "$@"
