"""The `segdist` command: `segdist JOB …` calls `main` in the job's module."""

import difflib
import importlib
import sys

from jobs.entry import run_job
from segdist import __version__

JOBS = {
    "make-shards": ("jobs.make_shards", "draw or read labeled images, cut patches, write a shard set"),
    "shards": ("jobs.shard_sets", "inspect a shard set, or verify every byte of it"),
    "train": ("jobs.train", "train on a shard set (torchrun for several ranks)"),
    "infer": ("jobs.infer", "segment images with a trained model (torchrun for several ranks)"),
    "cross-validate": ("jobs.cross_validate", "train on all folds but one in turn; scores from all labeled images"),
    "status": ("jobs.status", "show the status of runs, from their files; --follow keeps refreshing"),
    "report": ("jobs.report", "write one self-contained HTML page about a run, or a comparison of several"),
    "calibrate": ("jobs.calibrate", "fit temperature and share intervals to predictions with known masks"),
    "suspects": ("jobs.suspects", "list regions where predictions confidently contradict the masks"),
    "replay": ("jobs.replay", "recompute steps of an exact run and compare the weights bit for bit"),
    "export": ("jobs.export", "write a trained model as ONNX, checked against torch"),
    "pipeline": ("jobs.pipeline", "the three jobs above one after another, on this machine"),
    "bench": ("jobs.bench", "measure loader, training, scaling and inference here; say what limits them"),
    "submit": ("jobs.submit", "submit one of these jobs, or the pipeline, to a Slurm cluster"),
    "queue": ("jobs.show_queue", "show the state of submitted jobs"),
}


def usage() -> str:
    """The text of `segdist --help`."""
    width = max(len(name) for name in JOBS)
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in JOBS.items()]
    return "\n".join(
        [
            "usage: segdist JOB [options]",
            "",
            "Semantic segmentation from few labeled images, from a laptop to a Slurm cluster.",
            "",
            "jobs:",
            *lines,
            "",
            "`segdist JOB --help` shows a job's options; `--dry-run` checks them and shows the plan.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run the job that the first argument names; returns the exit code (see `segdist.core.exit_codes`)."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"segdist {__version__}")
        return 0
    name, *rest = arguments
    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(JOBS)}"
        print(f"error: unknown job {name!r}; {hint}", file=sys.stderr)
        return 2
    # Imported only now, so that `segdist --help` doesn't wait for torch.
    job = importlib.import_module(JOBS[name][0])
    return run_job(job.main, rest)


if __name__ == "__main__":
    sys.exit(main())
