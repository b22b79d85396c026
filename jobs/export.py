"""`segdist export`: write a trained model as ONNX and check it with onnxruntime.

segdist export --model runs/synthetic --out synthetic.onnx
"""

import sys

from jobs.command_line import parse, print_config
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED
from segdist.model.config import ExportConfig


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    command = parse(ExportConfig, argv, "export", __doc__ or "")
    if command.dry_run:
        print_config(command.job)
        return FINISHED
    # Heavy imports come after the command line: --help must not wait for torch.
    from segdist.model.export import export

    path, difference = export(command.job)
    print(f"{path}: largest difference between onnxruntime and torch {difference:.1e} of the largest output")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
