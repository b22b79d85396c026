"""Recognize out-of-memory errors, and find what fits."""

import gc
import traceback
from collections.abc import Callable

import torch

CPU_WORDS = ("can't allocate memory", "could not create a primitive", "could not create a memory")
"""Messages of torch's allocator and oneDNN on a CPU; oneDNN's are the same if its scratch memory is refused."""
GPU_WORDS = ("CUDA error: out of memory", "unable to find an engine", "INT_MAX elements")
"""Messages of the driver and cuDNN, which bypass torch's allocator, and of kernels given tensors that are too large."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error means that memory ran out, or that fewer samples at a time would work."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in said for words in CPU_WORDS + GPU_WORDS
    )


def release_frames(error: BaseException) -> None:
    """Free what the frames of the error hold, tensors above all, and the frames of the errors that led to it."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def largest_that_fits(try_out: Callable[[int], None], below: int) -> int:
    """The largest of `below`/2, `below`/4 … 1 (rounded up) for which `try_out` succeeds; 0 if none."""
    count = below
    while count > 1:
        count = -(-count // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            try_out(count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_frames(error)
        else:
            return count
    return 0
