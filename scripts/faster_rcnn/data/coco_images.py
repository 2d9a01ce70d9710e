"""The images of a COCO document: their files, also under names that only look alike, and their sizes."""

from collections.abc import Callable, Iterable
from pathlib import Path
from reprlib import repr as short

from faster_rcnn.data.annotations import AnnotatedImage, leads_outside
from faster_rcnn.data.coco_records import Identity, ListedImage
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.file_names import LOOKS_ALIKE, FileNames
from faster_rcnn.data.image_sizes import NO_SIZE, upright_sizes
from faster_rcnn.data.repairs import Repairs

FindElsewhere = Callable[[str], Path | None]  # an image by the name that the annotations give
SHOWN = 3  # look-alikes that a message names


class ImageFiles:
    """Finds the files of a split's images.

    A name is looked for in `folder`, in its subfolders `images`, `<split>` and `images/<split>`, as it is written;
    then there under names that look alike, of which there must be one; then by `elsewhere`.
    """

    def __init__(self, folder: Path, split: str, elsewhere: FindElsewhere, repairs: Repairs) -> None:
        images = folder / "images"
        self._bases = [folder, images, folder / split, images / split]
        self._elsewhere = elsewhere
        self._repairs = repairs
        self._names = FileNames()

    def find(self, name: str, title: str, where: str) -> Path | Fault:
        """The file of an image, or why there is none.  title: how messages name the image."""
        if leads_outside(name):
            if found := self._elsewhere(name):
                return found
            what = f"{title} names {short(name)}, which points outside the folder"
            return Fault("name outside the folder", where, what, "name a file in the folder")
        relative = name.replace("\\", "/")  # tools on Windows separate folders with backslashes
        for base in self._bases:
            if (exact := base / relative) in self._names:
                return exact
        places = [base / relative for base in self._bases]
        alike = self._look_alikes(places)
        if len(alike) == 1:
            self._repairs.count(LOOKS_ALIKE, where, f"{name}, found as {alike[0].name}")
            return alike[0]
        return self._elsewhere(name) or self._missing(name, where, places, alike)

    def _look_alikes(self, places: list[Path]) -> list[Path]:
        """Different files that look like one of `places`; a link and its target count once."""
        found: dict[Path, Path] = {}
        for base, place in zip(self._bases, places, strict=True):
            for path in self._names.look_alikes(place, base):
                found.setdefault(path.resolve(), path)
        return list(found.values())

    def _missing(self, name: str, where: str, places: list[Path], alike: list[Path]) -> Fault:
        if alike:
            what = f"image file {name} not found, but {_named(alike)} look alike"
            return Fault("missing image", where, what, "keep one of them under this name")
        what = f"image file {name} not found; these were tried: {', '.join(map(str, places))}"
        others = [path for place in places for path in self._names.of_the_same_stem(place)]
        what += f"; there is {_named(others)}" if others else ""
        return Fault("missing image", where, what, "add it or remove it from the list")


def _named(paths: list[Path]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, paths[:SHOWN])) + more


def read_images(
    listed: Iterable[tuple[ListedImage, str]],
    files: ImageFiles,
    faults: list[Fault],
    repairs: Repairs,
    left_out: set[Identity],
) -> dict[Identity, AnnotatedImage]:
    """The images by their ids, in the document's order. Those that cannot be used are added to `left_out`."""
    found: dict[Identity, tuple[ListedImage, Path, str]] = {}
    for image, where in listed:
        if image.id in found:
            what = f"image {image.id!r} is already listed at {found[image.id][2]}"
            faults.append(Fault("image listed twice", where, what, "give each image its own id"))
            continue
        path = files.find(image.file_name, f"image {image.id!r}", where)
        if isinstance(path, Path):
            found[image.id] = image, path, where
        else:
            faults.append(path)
            left_out.add(image.id)
    from_files = _sizes_from_files(found, faults, repairs)
    images = {}
    for identity, (image, path, where) in found.items():
        size = from_files.get(identity)
        if size is not None:
            images[identity] = AnnotatedImage(image.file_name, path, size[1], size[0], where, size_from_file=True)
        elif image.width and image.height:
            images[identity] = AnnotatedImage(image.file_name, path, int(image.height), int(image.width), where)
        else:
            left_out.add(identity)
    return images


def _sizes_from_files(
    images: dict[Identity, tuple[ListedImage, Path, str]], faults: list[Fault], repairs: Repairs
) -> dict[Identity, tuple[int, int]]:
    """Width and height of the images that the document gives no size for."""
    without = {identity: one for identity, one in images.items() if one[0].width is None or one[0].height is None}
    sizes = {}
    for (identity, (image, _, where)), size in zip(
        without.items(), upright_sizes(path for _, path, _ in without.values()), strict=True
    ):
        if isinstance(size, str):
            what = f"{image.file_name} has no size in the annotations, and its file cannot be read: {size}"
            faults.append(Fault("unreadable image", where, what, "replace it or remove it from the list"))
        else:
            sizes[identity] = size
            repairs.count(NO_SIZE, where, f"{image.file_name}, {size[0]}×{size[1]}")
    return sizes
