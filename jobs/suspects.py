"""`segdist suspects`: list regions where predictions confidently contradict the true masks, most suspect first.

    segdist infer -m runs/cells -f cells --split val --output.probabilities float16 --out predictions/cells
    segdist suspects predictions/cells

Writes suspects.csv, and suspects/NAME.geojson for QuPath. The predictions should be for images on which their model was
not trained, because a model repeats the wrong labels it has learned.
"""

import sys

from jobs.command_line import parse_options
from jobs.config import SuspectsConfig
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_options(SuspectsConfig, argv, "suspects", __doc__ or "")
    # Heavy imports come after the command line.
    from segdist.inference.suspects import suspects_text, write_suspects

    listed, total = write_suspects(config.result, config.most)
    print(suspects_text(listed, total, config.result))
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
