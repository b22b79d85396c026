#!/usr/bin/env bash
# Test the lowest versions that setup.cfg allows, all together: resolve wheels for Python 3.11, 3.12 and 3.13, then
# install those for 3.11 and run the fast tests. Run by hand, not in CI, because torch needs 5 GB of CUDA libraries.
#   bash tests/lowest_versions.sh [--resolve] [--folder FOLDER] [pytest options]
# --resolve stops after resolving. FOLDER keeps the environment for later runs (default: /tmp/segdist-lowest).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${TMPDIR:-/tmp}/segdist-lowest only_resolve=0
while [[ ${1:-} == --resolve || ${1:-} == --folder ]]; do
    if [[ $1 == --resolve ]]; then only_resolve=1; else folder=$2; shift; fi
    shift
done
mkdir -p "$folder"
if [[ ! -x $folder/tools/bin/uv ]]; then # pip has no way to ask for the lowest versions
    "${PYTHON:-python3}" -m venv "$folder/tools"
    "$folder/tools/bin/python" -m pip install --quiet --disable-pip-version-check uv
fi
uv=$folder/tools/bin/uv

# Wheels only, so that nothing is built. This would refuse the project itself, so its requirements are listed instead.
"$folder/tools/bin/python" - >"$folder/direct.in" <<'PYTHON'
import configparser

config = configparser.ConfigParser(interpolation=None)
config.read("setup.cfg")
print(config["options"]["install_requires"], *config["options.extras_require"].values(), sep="\n")
PYTHON
for version in 3.11 3.12 3.13; do
    "$uv" pip compile --quiet --resolution lowest-direct --python-version "$version" --only-binary :all: \
        --no-annotate --no-header --output-file "$folder/lowest-$version.txt" "$folder/direct.in"
    echo "Python $version: $(wc -l <"$folder/lowest-$version.txt") packages, among them" \
        "$(grep -E '^(torch|numpy|pillow|matplotlib|pydantic|wandb|imagecodecs)==' "$folder/lowest-$version.txt" | xargs)"
done
if ((only_resolve)); then exit; fi

if [[ ! -x $folder/venv/bin/python ]]; then "$uv" venv --quiet --python 3.11 "$folder/venv"; fi
export VIRTUAL_ENV=$folder/venv
"$uv" pip sync --quiet "$folder/lowest-3.11.txt"
"$uv" pip install --quiet --no-deps --editable .
exec "$folder/venv/bin/python" -m pytest -m "not slow" "$@"
