"""`segdist calibrate`: fit a temperature and intervals to predictions with known masks, and store them in the model.

    segdist infer -m runs/cells -f cells --split val --output.probabilities float16 --out predictions/cells
    segdist calibrate predictions/cells -m runs/cells

Inference then divides logits by the temperature before the softmax, so that confidence agrees with accuracy, and
`--output.measurements` gives a 90 % interval of each class's share, if there are at least 20 images. The predictions
must be for images on which their model was not trained, such as held-out ones.
"""

import sys

from jobs.command_line import parse_options
from jobs.config import CalibrateConfig
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_options(CalibrateConfig, argv, "calibrate", __doc__ or "")
    # Heavy imports come after the command line.
    from segdist.core.paths import run_dir
    from segdist.inference.calibrate import calibrate, calibration_text

    print(calibration_text(calibrate(config.result, [run_dir(name) for name in config.model])))
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
