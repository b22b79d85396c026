"""A process group of one rank that runs all kinds of communication, with NCCL if there is a GPU.

A job with one rank creates no group; this tests on one GPU the calls that several ranks make.
"""

import copy
import faulthandler
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segdist.training.data_parallel import BUFFERS_STAY


def main(device_name: str) -> None:
    """Run every kind of call; print "all is well" at the end."""
    device = torch.device(device_name)
    store = dist.HashStore()
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=0, world_size=1)

    whole = torch.arange(9, dtype=torch.int64, device=device)
    dist.all_reduce(whole)
    assert whole.tolist() == list(range(9))
    here = torch.tensor([3], dtype=torch.int32)
    work = dist.all_reduce(here, op=dist.ReduceOp.MAX, async_op=True)
    work.wait()
    assert here.item() == 3
    box = [{"any": "thing"}]
    dist.broadcast_object_list(box, src=0, device=device)
    gathered: list[object] = [None]
    dist.all_gather_object(gathered, box[0])
    assert gathered == [{"any": "thing"}]

    torch.manual_seed(0)
    alone = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)).to(device)
    together = DistributedDataParallel(
        copy.deepcopy(alone),
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{BUFFERS_STAY: False},  # type: ignore[arg-type]
    )
    images = torch.randn(4, 1, 16, 16, device=device)
    for _ in range(2):
        for model in (alone, together):
            model.zero_grad(set_to_none=True)
            model(images).square().mean().backward()
    for one, other in zip(alone.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for buffer in together.buffers():
        dist.broadcast(buffer, src=0)
    with together.no_sync():
        together(images).mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
        # How a rank exits after an error; the normal shutdown would wait for the others.
        dist.group.WORLD._get_backend(device).abort()  # type: ignore[union-attr]
    else:
        dist.destroy_process_group()
    print("all is well")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(300, exit=True)  # so that a hang, seen once in 300 runs, says where
    main(sys.argv[1])
