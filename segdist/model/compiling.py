"""What goes wrong inside torch.compile, in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from segdist.core.errors import UserError


@contextmanager
def explain_compiler_errors(kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn errors of torch.compile, which compiles at the model's first call, into one shown to the user.

    Raises:
        kind: the context failed in torch.compile.
    """
    try:
        yield
    except RuntimeError as error:
        # They have no public base class.
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        problem = kind(
            f"--compile failed: {reason}; leave it away, or install what is missing (on a CPU a C++ compiler)"
        )
        problem.on_this_rank = True
        raise problem from error
