"""Decodes every image of a data set before it is used, so that a broken image does not stop a long training run."""

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from PIL import Image
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.faults import Fault, refuse
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.image_facts import ImageFacts, examine
from faster_rcnn.data.orientation import NOT_CONFIRMED, TURNED, not_confirmed
from faster_rcnn.data.remembered import Remembered, open_remembered
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.data.white import use_white
from service.images.integrity import FURTHER_PAGES, WARNINGS

LINE_EVERY = 60.0  # seconds between two lines about the progress
FirstFiles = dict[str, tuple[str, Path]]  # SHA-256 of an image's bytes → the first split and file with these bytes


class Team(Protocol):
    """Processes that see the same files, and divide the images among them.

    place: that of this process, from 0;  size: the number of processes.
    """

    place: int
    size: int

    def exchange(self, work: "Callable[[], list[Result]]") -> "list[list[Result]]":
        """Calls `work`, and returns the results of all processes in the order of their places."""
        ...


class OneProcess:
    """A process that decodes all images itself."""

    place = 0
    size = 1

    def exchange(self, work: "Callable[[], list[Result]]") -> "list[list[Result]]":
        return [work()]


def open_checked(
    source: str,
    split: str,
    seed: int = 0,
    skip_bad_boxes: bool = False,
    workers: int = os.cpu_count() or 1,
    white: int | None = None,
    val_share: float | None = None,
    exif_boxes: str | None = None,
) -> Dataset:
    """Opens a data set like `open_dataset`, then decodes every image once in `workers` threads.

    With `skip_bad_boxes` the images that cannot be read are left out, as in training. Without it, ValueError is raised,
    listing the first of them. The errors of `open_dataset` are raised too. Says if boxes may be turned otherwise than
    their images.

    white: that of the detector which will see the images (`white.use_white`); None: it is found in the data.
    """
    dataset = open_dataset(source, split, seed, skip_bad_boxes, val_share, exif_boxes)
    use_white(dataset, white)
    for fault in check_before_training([dataset], workers):
        if fault.kind in (NOT_CONFIRMED, TURNED):
            print(fault, file=sys.stderr)
    return dataset


def check_before_training(
    datasets: Sequence[Dataset], workers: int, team_for: Callable[[FolderDataset], Team] = lambda _: OneProcess()
) -> list[Fault]:
    """Decodes every image of the folders among `datasets`. Generated images need no check.

    team_for: the processes that check a data set together.

    Returns all faults, including those of the annotations: warnings, and what `skip_bad_boxes` left out.
    Raises ValueError, with the first faults in one line, if training cannot start with one of the data sets.
    """
    first_files: FirstFiles = {}
    found: list[Fault] = []
    for dataset in datasets:
        if isinstance(dataset, FolderDataset):
            faults = [*dataset.faults, *check_images(dataset, workers, first_files, team=team_for(dataset))]
            refuse(faults, dataset.source, dataset.skip_bad_boxes)
            if not len(dataset):
                raise ValueError(f"{dataset.source}: split {dataset.split} has no image that can be read; add images")
            found += faults
    return found


def summary(faults: Sequence[Fault]) -> str:
    """The number of faults of each kind in one line, the most frequent first."""
    counts = Counter(fault.kind for fault in faults).most_common()
    return ", ".join(f"{count} × {kind}" for kind, count in counts) or "none"


def check_images(
    dataset: FolderDataset,
    workers: int,
    first_files: FirstFiles | None = None,
    remembered: Remembered | None = None,
    team: Team | None = None,
) -> list[Fault]:
    """Decodes every image in `workers` threads; the decoders release Python's global lock while they work.

    An image that cannot be trained on causes an error and is removed from the data set. These cause warnings: an image
    that can be decoded although it is damaged, a file name with the extension of another format, and a file with the
    same bytes as another one, in this split or in a split that was checked before with the same `first_files`.

    remembered: what earlier checks found in files that have not changed since; None opens the user's. What this check
    finds is added to it as the check goes on, so that a check that is interrupted can be continued.
    team: the processes that call this function with the same data set, each for its share; None: this one alone.
    """
    team = team or OneProcess()
    indices = range(team.place, len(dataset), team.size)

    def examine_share() -> list[Result]:
        memory = remembered or open_remembered()
        try:
            return list(_examined(dataset, indices, workers, memory))
        finally:
            memory.close()

    shares = team.exchange(examine_share)
    results = [shares[index % team.size][index // team.size] for index in range(len(dataset))]
    if team.place == 0 and (known := sum(result.remembered for result in results)):
        print(f"{known} of {len(results)} images of split {dataset.split} were checked before", file=sys.stderr)
    dataset.facts = [result.facts for result in results if result.facts is not None and result.readable]
    faults = [fault for result in results for fault in result.faults]
    faults += _duplicates(dataset, results, {} if first_files is None else first_files)
    dataset.remove(index for index, result in enumerate(results) if not result.readable)
    if dataset.exif_boxes is None:
        faults += not_confirmed(_doubtful(dataset), len(dataset), dataset.source)
    return faults


def _doubtful(dataset: FolderDataset) -> list[str]:
    """The names of images that are turned, have boxes, and no size that tells what these were drawn on."""
    return [
        dataset.name(index)
        for index, facts in enumerate(dataset.facts)
        if facts.orientation != 1
        and not (dataset.has_own_size(index) and facts.orientation >= 5 and facts.width != facts.height)
        and dataset.has_boxes(index)
    ]


@dataclass(frozen=True)
class Result:
    """The check of one image.

    facts: None if the file cannot be read;  status: of the file before it was read;  faults: an error if the image
    cannot be trained on, else warnings.
    """

    facts: ImageFacts | None = None
    remembered: bool = False
    status: os.stat_result | None = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        return all(fault.warning for fault in self.faults)


def _examined(dataset: FolderDataset, indices: range, workers: int, memory: Remembered) -> Iterator[Result]:
    """The result of every image in `indices`, in order. Those that were remembered take no thread's time."""
    known = {}
    for index in indices:
        path = dataset.path(index)
        try:
            facts = memory.get(path, path.stat())
        except OSError:
            continue  # reading it says why
        if facts is not None:
            known[index] = facts
    unknown = [index for index in indices if index not in known]
    with ThreadPoolExecutor(workers) as threads:
        try:
            found = _with_progress(
                threads.map(lambda index: _examine(dataset, index, memory), unknown), len(unknown), dataset
            )
            for index in indices:
                if index in known:
                    yield Result(known[index], True, faults=_faults(dataset, index, known[index]))
                    continue
                result = next(found)
                if result.facts is not None and result.status is not None:
                    memory.put(dataset.path(index), result.status, result.facts)
                yield replace(result, status=None)
        except BaseException:  # Ctrl-C too: the images that wait must not be decoded first
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _with_progress(results: Iterator[Result], number: int, dataset: FolderDataset) -> Iterator[Result]:
    """`results` with a progress bar on a terminal, and with a line every LINE_EVERY seconds elsewhere."""
    name, last = f"{dataset.source}, {dataset.split}", time.monotonic()
    on_terminal = sys.stderr.isatty()
    bar = tqdm(results, name, number, leave=False, unit=" images", disable=not on_terminal)
    for done, result in enumerate(bar, 1):
        if not on_terminal and time.monotonic() - last > LINE_EVERY:
            last = time.monotonic()
            print(f"{name}: {done} of {number} images decoded", file=sys.stderr)
        yield result


def _examine(dataset: FolderDataset, index: int, memory: Remembered) -> Result:
    path = dataset.path(index)
    try:
        status, data = path.stat(), path.read_bytes()
    except OSError as error:
        what = f"{dataset.name(index)} cannot be read: {error.strerror}"
        fault = Fault("unreadable image", dataset.where(index), what, "repair it or remove it from the list")
        return Result(faults=[fault])
    known = memory.of_content(hashlib.sha256(data).hexdigest())
    facts = known or examine(data)
    return Result(facts, known is not None, status, _faults(dataset, index, facts))


def _faults(dataset: FolderDataset, index: int, facts: ImageFacts) -> list[Fault]:
    """The fault of an image that cannot be trained on, or else warnings."""
    where, name = dataset.where(index), dataset.path(index).name
    if fault := dataset.fault_of(index, facts.fault, facts.size):
        return [fault]
    faults = []
    named = Image.registered_extensions().get(dataset.path(index).suffix.lower())
    if named not in (None, facts.format):
        what = f"{name} holds a {facts.format} image"
        faults.append(Fault("mislabelled image", where, what, "rename it to match", warning=True))
    remedy = "replace it with the original file, or remove it from the list"
    for word in facts.damage:
        if word == FURTHER_PAGES:
            what = f"{name}: {WARNINGS[word]}"
            faults.append(Fault("further pages", where, what, "save each page as a file of its own", warning=True))
            continue
        what = f"{name} is damaged: {WARNINGS[word]}"
        faults.append(Fault("damaged image", where, what, remedy, warning=True))
    return faults


def _duplicates(dataset: FolderDataset, results: Sequence[Result], first_files: FirstFiles) -> list[Fault]:
    """One fault for each file that repeats another's bytes, and one for all images that two splits share."""
    faults = []
    shared: dict[str, list[str]] = {}
    for index, result in enumerate(results):
        if result.facts is None or not result.readable:
            continue
        path, name = dataset.path(index), dataset.name(index)
        split, first = first_files.setdefault(result.facts.digest, (dataset.split, path))
        if first == path and split != dataset.split:
            shared.setdefault(split, []).append(name)
        elif first != path:
            what = f"{name} has the same bytes as {first} (split {split})"
            faults.append(Fault("duplicate image", dataset.where(index), what, "keep one of the two", warning=True))
    for split, names in shared.items():
        what = f"split {dataset.split} shares images with split {split}: {len(names)} in total, the first is {names[0]}"
        remedy = "remove them from one of the two, because a detector must not be evaluated on its training images"
        faults.append(Fault("splits share images", dataset.source, what, remedy, warning=True))
    return faults
