"""`segdist cross-validate`: scores from all labeled images, each segmented by a model that was not trained on it.

    segdist cross-validate -f cells --folds 5 --minutes 20
    segdist cross-validate -f cells --train '{"preset": "fast"}' --tracking '{"wandb": "off"}'

The training and validation images form the folds, with all images of a group in one fold; test images are not used. For
each fold, a model is trained on the others for `--minutes` (runs/cells-cv/fold-1, …). The held-out images select
nothing: the model after the last step is used. Then all labeled images are segmented into runs/cells-cv/out-of-fold,
probabilities are calibrated, suspect labels listed, and scores written to runs/cells-cv/scores.json and report.html.

`segdist infer -m cells-cv` averages the models. After an interruption, the same command resumes; finished folds are
kept.
"""

import shutil
import sys
from contextlib import ExitStack

from jobs.command_line import parse, print_config
from jobs.config import CrossValidateConfig, FoldsConfig, without_preset
from jobs.entry import run_job
from jobs.steps import Step, check_steps, run_steps
from segdist.core.exit_codes import FINISHED
from segdist.core.fold import fold_folder, folds_of
from segdist.core.owner import owned
from segdist.core.paths import LAST_MODEL, OUT_OF_FOLD, PIPELINE, set_dir
from segdist.core.terminal import say


def main(argv: list[str] | None = None) -> int:
    """Run the folds, the inference and the scoring; returns the first exit code that is not 0."""
    command = parse(CrossValidateConfig, argv, "cross-validate", __doc__ or "")
    config = command.job
    # Heavy imports come after the command line.
    from segdist.inference.cross_validation import folds_text, score, scores_text
    from shards.read.folds import divide
    from shards.read.reader import ShardSet

    shard_set = ShardSet(set_dir(config.data))
    say(folds_text(shard_set, divide(shard_set, config.folds, config.seed)))
    if not config.finish:
        steps = _steps(config)
        check_steps(steps)
        if command.dry_run:
            print_config(config)
            # The other folds have the same plan.
            return run_steps([steps[0], steps[-1]], config.folder / PIPELINE, dry_run=True)
        if config.fresh and config.folder.exists():
            with ExitStack() as stack:
                for folder in (config.folder, *folds_of(config.folder), config.folder / OUT_OF_FOLD):
                    if folder.exists():  # make sure that no other job is using it
                        stack.enter_context(owned(folder, "segdist cross-validate --fresh"))
                shutil.rmtree(config.folder, ignore_errors=True)
        if code := run_steps(steps, config.folder / PIPELINE):
            return code
    elif command.dry_run:
        return FINISHED
    print(scores_text(score(config.folder, shard_set)))
    from segdist.runs.report import refresh_report

    refresh_report(config.folder)
    return FINISHED


def train_arguments(config: FoldsConfig) -> list[list[str]]:
    """The options of each fold's training, in addition to its settings."""
    _, preset = without_preset(config.tables()["train"])
    return [
        [
            *("-f", config.data, "--name", str(fold_folder(config.folder, number))),
            *("--fold", f"{number}/{config.folds}", *preset),
        ]
        for number in range(1, config.folds + 1)
    ]


def infer_arguments(config: FoldsConfig) -> list[str]:
    """The options of the inference, in addition to its settings; probabilities stay uncalibrated."""
    out = config.folder / OUT_OF_FOLD
    return ["-m", str(config.folder), "-f", config.data, "--out-of-fold", "--no-calibrated", "--out", str(out)]


def _steps(config: CrossValidateConfig) -> list[Step]:
    tables, last = config.tables(), fold_folder(config.folder, config.folds) / LAST_MODEL
    train, _ = without_preset(tables["train"])
    return [
        *(Step("train", config.processes, arguments, train) for arguments in train_arguments(config)),
        Step("infer", config.processes, infer_arguments(config), tables["infer"], last),
    ]


if __name__ == "__main__":
    sys.exit(run_job(main))
