"""The check of the images, divided among the processes that see the same files."""

from collections.abc import Callable

import torch.distributed as dist

from faster_rcnn.data.decode_check import Result
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.training.processes import TIMEOUT, place_of, processes, rank
from faster_rcnn.training.waiting import each, exchanged


class SameFiles:
    """The processes on one machine that read a data set from the same place.

    Machines do not share the work, because each may have a copy of its own: `check_same_data` compares them.
    All processes of a run make it at the same time.
    """

    def __init__(self, dataset: FolderDataset) -> None:
        first = dataset.path(0).absolute() if len(dataset) else ""
        of_all = exchanged(f"{place_of(rank())}:{first}:{len(dataset)}")
        self.members = [number for number in range(processes()) if of_all[number] == of_all[rank()]]
        self.place, self.size = self.members.index(rank()), len(self.members)
        self._group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            for one in dict.fromkeys(of_all):  # every process takes part in the making of every group
                members = [number for number in range(processes()) if of_all[number] == one]
                group = dist.new_group(members, timeout=TIMEOUT)
                if isinstance(group, dist.ProcessGroup):  # a number where this process is not a member
                    self._group = group

    def exchange(self, work: Callable[[], list[Result]]) -> list[list[Result]]:
        """Calls `work`, and returns the results of all processes in the order of their places."""
        own = each(work)
        if self.size == 1:
            return [own]
        shares: list[list[Result]] = [own] * self.size
        dist.all_gather_object(shares, own, group=self._group)
        return shares
