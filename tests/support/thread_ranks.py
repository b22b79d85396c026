"""Ranks as threads of one process, for properties of any number of ranks that would take minutes with real processes.

Sums are taken in random order, which exposes any dependence on the order.
"""

import random
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from segdist.ranks.launchers import RankEnvironment
from segdist.ranks.process_group import Ranks

Result = TypeVar("Result")


class ThreadRanks(Ranks):
    """One of `world_size` threads."""

    def __init__(self, rank: int, world_size: int, board: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(RankEnvironment("torchrun", rank, rank, world_size, world_size), torch.device("cpu"))
        self._board, self._barrier = board, barrier

    def barrier(self) -> None:
        self._barrier.wait()

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait()
        values = list(self._board)
        self._barrier.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        terms = self.gather(tensor.clone())
        order = random.Random(len(terms) + tensor.numel()).sample(range(len(terms)), len(terms))
        tensor.copy_(terms[order[0]])
        for index in order[1:]:
            tensor += terms[index]
        return tensor

    def share_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(self.gather(tensor.clone())[0])

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self.gather(tensor.clone())).amax(dim=0))


def on_ranks(world_size: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """Run `work` on each of `world_size` ranks; return the results, or raise a rank's error."""
    board: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size, timeout=60)
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, world_size, board, barrier))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return results
