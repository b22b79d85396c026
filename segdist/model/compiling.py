"""One-line messages for torch.compile errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from segdist.core.errors import UserError


@contextmanager
def explain_compiler_errors(kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn a torch.compile error, raised at the model's first call, into one that is shown to the user.

    Raises:
        kind: torch.compile failed inside the context.
    """
    try:
        yield
    except RuntimeError as error:
        # These errors have no public base class.
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        problem = kind(f"--compile failed: {reason}; omit it, or install what is missing (on a CPU, a C++ compiler)")
        problem.on_this_rank = True
        raise problem from error
