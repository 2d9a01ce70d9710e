"""Which images a training run was begun with, so that `--resume` notices when one has been replaced.

The record is a file of JSON lines in the run folder: split, name, width, height, and the SHA-256 of the file's bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.files import write_text

FILE = "images.jsonl"
SHOWN = 3  # names in a message

ImageRecord = dict[tuple[str, str], tuple[int, int, str]]  # split and name → width, height, digest


def image_record(datasets: Sequence[Dataset]) -> ImageRecord:
    """The images of the folders among `datasets`, which `check_images` has decoded. Generated images need no record."""
    record: ImageRecord = {}
    for dataset in datasets:
        if isinstance(dataset, FolderDataset):
            for index, facts in enumerate(dataset.facts):
                record[dataset.split, dataset.name(index)] = (facts.width, facts.height, facts.digest)
    return record


def write_image_record(folder: Path, record: ImageRecord) -> None:
    """Writes the file whole or not at all, so that a crash leaves the previous record intact."""
    write_text(folder / FILE, "".join(f"{json.dumps([*key, *values])}\n" for key, values in record.items()))


def read_image_record(folder: Path) -> ImageRecord | None:
    """The record in a run folder; None if there is none.  Raises ValueError if it cannot be read."""
    file = folder / FILE
    if not file.is_file():
        return None
    record: ImageRecord = {}
    try:
        for line in file.read_text("utf-8").splitlines():
            split, name, width, height, digest = json.loads(line)
            record[split, name] = (width, height, digest)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged; delete it to go on without comparing the images") from error
    return record


def changes(before: ImageRecord, now: ImageRecord) -> str:
    """What has changed, as a clause with the first names; "" if nothing has."""
    kinds = {
        "changed": [key for key in now if key in before and now[key] != before[key]],
        "missing": [key for key in before if key not in now],
        "new": [key for key in now if key not in before],
    }
    return "; ".join(f"{len(keys)} images are {kind}: {_names(keys)}" for kind, keys in kinds.items() if keys)


def _names(keys: Sequence[tuple[str, str]]) -> str:
    shown = ", ".join(f"{name} ({split})" for split, name in keys[:SHOWN])
    return shown + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
