"""Training in several processes, on one or more GPUs, started by `torchrun`: ranks and communication.

The result of a batch does not depend on the number of processes: each gets the same number of images, gradients are
averaged over the processes, and batch normalisation computes its statistics over all images.

Only the first process reads and writes the run folder. The processes exchange Python objects, which torch.distributed
pickles: they are started together, trust each other, and talk over a network that must be private.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from faster_rcnn.data.loader import Batch
from faster_rcnn.training.joining import join, told_by_all

T = TypeVar("T")

# Without an answer of another process for so long, a process ends. Steps that may last longer are those of `waiting`.
TIMEOUT = timedelta(minutes=10)


class _Group:
    """What the processes know of each other.  store: which all of them reach;  places: the machine of each."""

    store: dist.Store | None = None
    places: tuple[str, ...] = ("this machine",)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that `torchrun` started, if it did, and yields the device of this process.

    Raises ValueError in every process if some compute on GPUs and others do not.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    store, number, size = join(TIMEOUT)
    _Group.places = told_by_all(store, number, size, socket.gethostname())
    _check_same_kind(told_by_all(dist.PrefixStore("kind", store), number, size, device.type))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=number,
        world_size=size,
        timeout=TIMEOUT,
    )
    try:
        _Group.store = dist.PrefixStore("steps", store.clone())  # its own connection: NCCL's threads use the other one
        yield device
    finally:
        _Group.store = None
        dist.destroy_process_group()


def _check_same_kind(kinds: tuple[str, ...]) -> None:
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"process {number} ({place_of(number)}) computes on {kind}, and process 0 ({place_of(0)}) on "
                f"{kinds[0]}; look for missing GPUs or drivers, or give all processes the same --device"
            )


def common_store() -> dist.Store:
    """A store of small values that all processes reach."""
    assert _Group.store is not None
    return _Group.store


def place_of(number: int) -> str:
    """The name of the machine on which a process runs."""
    return _Group.places[number]


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(value: T) -> list[T]:
    """The values of all processes, in every process."""
    if not dist.is_initialized():
        return [value]
    values: list[T] = [value] * processes()
    dist.all_gather_object(values, value)
    return values


def gathered_by_first(value: T) -> list[T] | None:
    """The values of all processes, in the first one; None in the others."""
    if not dist.is_initialized():
        return [value]
    values: list[T] | None = [value] * processes() if rank() == 0 else None
    dist.gather_object(value, values)
    return values


@contextmanager
def file_of_first(file: Path) -> Iterator[Path]:
    """A file that only the first process can read: itself in that process, and a temporary copy in the others."""
    if not dist.is_initialized():
        yield file
        return
    content = [file.read_bytes() if rank() == 0 else b""]
    dist.broadcast_object_list(content)
    if rank() == 0:
        yield file
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder, file.name)
        copy.write_bytes(content.pop())
        yield copy


def copy_from_first(module: nn.Module) -> None:
    """Gives `module` the parameters and buffers that it has in the first process."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            values = tensor.contiguous()
            dist.broadcast(values, 0)
            tensor.copy_(values)


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of `values` over the processes, in place and without a gradient."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def same_canvas(batch: Batch) -> Batch:
    """Pads the batch to the largest canvas of all processes: padding enters batch normalisation's statistics."""
    if not dist.is_initialized():
        return batch
    canvas = torch.tensor(batch.images.shape[1:3], device=batch.images.device)
    dist.all_reduce(canvas, dist.ReduceOp.MAX)
    height, width = (canvas - torch.tensor(batch.images.shape[1:3], device=canvas.device)).tolist()
    return replace(batch, images=F.pad(batch.images, (0, 0, 0, width, 0, height)))


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with statistics over the batches of all processes, which have the same size.

    torch.nn.SyncBatchNorm does the same on GPUs only.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        assert self.running_mean is not None
        assert self.running_var is not None
        count = features.numel() / features.shape[1] * dist.get_world_size()
        whole = features.float()
        mean = _Sum.apply(whole.sum(dim=(0, 2, 3))) / count
        centred = whole - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum or 0.0)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(features.dtype)


def share_statistics(module: nn.Module) -> None:
    """Makes every batch normalisation in `module` use the batches of all processes.

    Only the class of each module changes, so that references to it, as in a list of frozen modules, remain valid.
    """
    if dist.is_initialized():
        for one in module.modules():
            if type(one) is nn.BatchNorm2d:
                one.__class__ = _SharedBatchNorm
