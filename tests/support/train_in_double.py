"""`jobs/train.py` in float64: equal up to rounding means here, on any processor, equal in all that float32 files hold.

In float32 the rounding of a few steps can grow until a ReLU or a maximum falls the other way; how far depends on the
processor. Nothing of the program offers float64, so torch is told that float32 means that.
"""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SINGLE = torch.float32
fused_sgd = torch._fused_sgd_  # type: ignore[attr-defined]


def fused_sgd_with_single_flag(*values: Any, **options: Any) -> Any:
    """The fused step takes its `found_inf` in float32 alone."""
    return fused_sgd(*values, **options | {"found_inf": options["found_inf"].to(SINGLE)})


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch._fused_sgd_ = fused_sgd_with_single_flag  # type: ignore[attr-defined]

    from jobs import train
    from jobs.entry import run_job

    sys.exit(run_job(train.main))
