"""COCO's format: a JSON file of annotations and the images that it names. `layouts/coco_files.py` finds the files.

`coco_records.py` says what each element may hold, `coco_categories.py`, `coco_images.py` and `coco_objects.py` what is
made of them.
"""

from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short

from faster_rcnn.data.annotations import ParsedSplit
from faster_rcnn.data.coco_categories import read_categories, without_roots
from faster_rcnn.data.coco_images import FindElsewhere, ImageFiles, read_images
from faster_rcnn.data.coco_objects import ObjectReader
from faster_rcnn.data.coco_records import Identity, ListedImage, Object, records
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.json_lists import JSONList, decode_document, read_text
from faster_rcnn.data.repairs import Repairs
from faster_rcnn.data.syntax_errors import json_fault


def _nowhere(name: str) -> Path | None:  # noqa: ARG001
    return None


def read_coco(
    file: Path, folder: Path, split: str, elsewhere: FindElsewhere = _nowhere, siblings: Sequence[Path] = ()
) -> ParsedSplit:
    """Reads the annotations of a split. Classes are numbered in the order of their category ids.

    The images are looked for in `folder`, in its subfolders `images`, `<split>` and `images/<split>`, and then by
    `elsewhere`.  siblings: the documents of the other splits, in which a category may have objects.

    Raises ValueError, naming the file, if it is not in COCO's format, has no classes or no images, or if its boxes are
    in another notation.
    """
    lists = _read(file)
    faults: list[Fault] = []
    repairs = Repairs(split)
    listed_categories = read_categories(file, lists["categories"], faults, repairs)
    categories = without_roots(file, listed_categories, [file, *siblings], faults)
    left_out: set[Identity] = set()
    listed = records(ListedImage, "image", file, lists["images"], faults, repairs, left_out)
    images = read_images(listed, ImageFiles(folder, split, elsewhere, repairs), faults, repairs, left_out)
    numbers = {category.id: number for number, category in enumerate(categories)}
    reader = ObjectReader(images, numbers, left_out, faults, repairs)
    for found, where in records(Object, "annotation", file, lists["annotations"], faults, repairs):
        reader.add(found, where)
    reader.finish(file)
    faults += repairs.faults({"images": len(lists["images"]), "annotations": len(lists["annotations"])})
    labels = tuple(category.name for category in categories)
    return ParsedSplit(f"coco:{folder}", split, labels, list(images.values()), faults)


def _read(file: Path) -> dict[str, JSONList]:
    """The lists of a document by name.  Raises ValueError, naming the file, if it is not in COCO's format."""
    try:
        document = decode_document(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {json_fault(error)}; export it again as COCO") from error
    if isinstance(document, JSONList):
        raise ValueError(
            f"{file}: not in COCO's format: it is a list of {len(document)} values, as COCO's results are, not an "
            "object with the lists images, categories and annotations; export the annotations as COCO"
        )
    if not isinstance(document, dict):
        raise ValueError(f"{file}: not in COCO's format: it is {short(document)}, not an object; export it as COCO")
    lists: dict[str, JSONList] = {}
    for name in ("images", "categories", "annotations"):
        if name not in document:
            raise ValueError(f"{file}: not in COCO's format: it has no list of {name}; export it again as COCO")
        found = document[name]
        if not isinstance(found, JSONList):
            raise ValueError(
                f"{file}: not in COCO's format: its {name} are {short(found)}, not a list; export it again as COCO"
            )
        if not len(found) and name != "annotations":
            raise ValueError(f"{file}: its list of {name} is empty; export it again with {name}")
        lists[name] = found
    return lists
