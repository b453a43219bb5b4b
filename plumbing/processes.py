"""What torchrun's processes share out, put together again and add up.

Under torchrun each process runs the same script on its own device. All take the same steps on the same data; each
computes its share, and what the shares give is gathered or added up, so that all know the same. The first one writes.
"""

import functools
import os
import sys
from collections.abc import Iterable, Sequence

import torch
import torch.distributed
from tqdm import tqdm

from plumbing.errors import UserError


def join_processes() -> None:
    """Under torchrun, let the processes find each other; all but the first then print nothing and show no bars."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if rank_and_size()[0] > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
            tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)


def rank_and_size() -> tuple[int, int]:
    """This process's number, counted from 0, and how many there are; (0, 1) without torchrun."""
    is_alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return (0, 1) if is_alone else (torch.distributed.get_rank(), torch.distributed.get_world_size())


def share(items: Sequence) -> Sequence:
    """This process's part of the items: a run of neighbours, so that `gather` need only join the parts."""
    rank, size = rank_and_size()
    return items[len(items) * rank // size : len(items) * (rank + 1) // size]


def micro_batches(rows: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """This process's share of the rows in pieces of at most `size`, 0 for one piece; none where it has no share."""
    mine = share(rows)
    return mine.split(size or len(mine)) if len(mine) else ()


def gather(part: list) -> list:
    """The parts of all processes, joined in their order. No process goes on before all have come here."""
    parts = [part]
    if rank_and_size()[1] > 1:
        parts = [[] for _ in range(rank_and_size()[1])]
        torch.distributed.all_gather_object(parts, part)
    return [item for part in parts for item in part]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Each gradient becomes its sum over all processes; one that had no share of the batch adds 0."""
    for p in parameters if rank_and_size()[1] > 1 else ():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.distributed.all_reduce(p.grad)


def find_device(name: str) -> str:
    """auto: the best there is; cuda: under torchrun, one GPU for each process. UserError if there is none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.Generator(name)
    except (RuntimeError, AssertionError):
        raise UserError(f"there is no device {name!r} on this machine (auto takes the best there is)") from None
    return name
