"""Several processes under torchrun, and the device to compute on.

Under torchrun each process runs the same script on its own device. All take the same steps on the same data. Each
computes its share; the shares are then gathered or added up, so that all processes know the same. The first one writes.
"""

import functools
import os
import sys
from collections.abc import Iterable, Sequence

import torch
import torch.distributed
from tqdm import tqdm

from plumbing.errors import UserError


def find_device(name: str) -> str:
    """auto: the best device there is. cuda: under torchrun, this process's GPU. UserError if there is none such."""
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.Generator(name)
    except (RuntimeError, AssertionError):
        raise UserError(f"there is no device {name!r} on this machine (auto takes the best there is)") from None
    return name


def join_processes() -> None:
    """Under torchrun, connects the processes. All but the first then print nothing and show no progress bars."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank_and_size()[0] > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)


def rank_and_size() -> tuple[int, int]:
    """The number of this process, counted from 0, and how many there are; (0, 1) without torchrun."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def share(items: Sequence) -> Sequence:
    """This process's part of the items: neighbours, so that `gather` only has to join the parts."""
    rank, size = rank_and_size()
    return items[len(items) * rank // size : len(items) * (rank + 1) // size]


def micro_batches(rows: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """This process's share of the rows in pieces of at most `size` (0: in one piece). No share, no pieces."""
    mine = share(rows)
    return mine.split(size or len(mine)) if len(mine) else ()


def gather(part: list) -> list:
    """The parts of all processes, joined in their order. Every process waits here until all have come."""
    _, size = rank_and_size()
    if size == 1:
        return list(part)
    parts: list[list] = [[]] * size
    torch.distributed.all_gather_object(parts, part)
    return sum(parts, [])


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Each gradient becomes its sum over all processes. A process without a share of the batch adds 0."""
    _, size = rank_and_size()
    if size == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        torch.distributed.all_reduce(p.grad)
