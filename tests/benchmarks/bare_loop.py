"""The bare loop used as a baseline for the trainer: forward, backward and optimizer step on one prepared batch."""

import contextlib
from collections.abc import Callable
from typing import Any

WIDTH, BATCH, PATCH, CLASSES = 16, 16, 96, 3
"""Base width of the U-Net, batch size, patch side and classes of the reference step."""
WARM_UP = 8
"""Untimed steps at the start."""


def bare_loop(
    threads: int,
    batch: int = BATCH,
    channels_last: bool = False,
    bf16: bool = False,
    compiled: bool = False,
    implementation: str = "fused",
    keep_freed: bool = False,
    ddp: bool = False,
    **model: Any,
) -> Callable[[int], None]:
    """Return a function that runs a given number of steps, already warmed up.

    Args:
        implementation: how torch runs the optimizer: "fused", "foreach" or "for-loop".
        keep_freed: malloc keeps freed blocks, as in every job.
        ddp: average the gradients over the ranks that torchrun started, with torch's DistributedDataParallel.
        model: further arguments of the U-Net.
    """
    import torch
    from torch.nn import functional

    from segdist.model.unet import UNet
    from segdist.ranks.allocator import keep_freed_memory

    if keep_freed:
        keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net: Any = UNet(1, CLASSES, **{"width": WIDTH, **model}).to(memory_format=memory_format)  # type: ignore[call-overload]
    how = {"fused": implementation == "fused", "foreach": implementation == "foreach"}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, **how)
    images = torch.randn(batch, 1, PATCH, PATCH).contiguous(memory_format=memory_format)
    truth = torch.randint(0, CLASSES, (batch, PATCH, PATCH))
    if ddp:
        torch.distributed.init_process_group("gloo")
        net = torch.nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True, broadcast_buffers=False)
    call = torch.compile(net) if compiled else net

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
                logits = call(images)
            functional.cross_entropy(logits.float(), truth).backward()
            optimizer.step()

    run(WARM_UP)
    return run
