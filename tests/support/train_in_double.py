"""`jobs/train.py` in float64, so that results equal up to rounding are identical in float32 files on any processor.

In float32, rounding errors of a few steps can grow until a ReLU or a maximum flips, depending on the processor. The
program doesn't offer float64, so torch's float32 is redefined.
"""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SINGLE = torch.float32
fused_sgd = torch._fused_sgd_  # type: ignore[attr-defined]


def fused_sgd_with_single_flag(*values: Any, **options: Any) -> Any:
    """The fused step accepts `found_inf` only in float32."""
    return fused_sgd(*values, **options | {"found_inf": options["found_inf"].to(SINGLE)})


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch._fused_sgd_ = fused_sgd_with_single_flag  # type: ignore[attr-defined]

    from jobs import train
    from jobs.entry import run_job

    sys.exit(run_job(train.main))
