"""Boxes that were drawn on an image as it is stored, although its EXIF orientation turns it.

Most annotation tools show images upright, and their boxes belong to the upright image. Some ignore the orientation.
Where it swaps the sides, the size in the annotations tells which tool was used. Where the sides stay (orientations 2 to
4, and square images), and where the annotations state no size, nothing tells, and the user must say.

W, H  the stored image's width and height.  Boxes are x1, y1, x2, y2.
"""

from collections.abc import Sequence
from dataclasses import replace

from faster_rcnn.data.annotations import AnnotatedImage
from faster_rcnn.data.faults import Fault
from service.images.decode import ImageError, Stored, stored

EXIF_BOXES = ("upright", "stored")  # the image that the boxes were drawn on, where the sizes do not tell
NOT_CONFIRMED = "orientation not confirmed"  # kinds of faults
TURNED = "boxes turned"

Box = tuple[float, float, float, float]


def turned_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """A box on the stored image, on the upright image.  width, height: W, H;  orientation: 1 to 8, as in EXIF."""
    x1, y1, x2, y2 = box
    if orientation in (2, 3, 7, 8):  # mirrored or turned along the stored x axis
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return (y1, x1, y2, x2) if orientation >= 5 else (x1, y1, x2, y2)


def turned(image: AnnotatedImage) -> AnnotatedImage:
    """The image with its boxes and size as they are upright, if the sizes do not tell that they are upright already.

    An image that cannot be read is returned as it is; decoding it reports why.
    """
    try:
        file = stored(image.path.read_bytes())
    except (ImageError, OSError):
        return image
    if file.orientation == 1 or _sizes_say_upright(image, file):
        return image
    swaps = file.orientation >= 5
    # A size that was taken from the file is the upright one.
    width, height = (file.width, file.height) if image.size_from_file else (image.width, image.height)
    boxes = [turned_box(one.box, width, height, file.orientation) for one in image.annotations]
    annotations = [replace(one, box=box) for one, box in zip(image.annotations, boxes, strict=True)]
    upright_height, upright_width = (width, height) if swaps else (height, width)
    return replace(image, height=upright_height, width=upright_width, annotations=annotations)


def _sizes_say_upright(image: AnnotatedImage, file: Stored) -> bool:
    swaps = file.orientation >= 5 and file.width != file.height
    return swaps and not image.size_from_file and (image.width, image.height) == (file.height, file.width)


def turn_all(images: Sequence[AnnotatedImage], source: str) -> tuple[list[AnnotatedImage], list[Fault]]:
    """`turned` for all images, and a warning that says how many it has changed."""
    results = [turned(image) for image in images]
    changed = sum(before is not after for before, after in zip(images, results, strict=True))
    if not changed:
        return results, []
    what = f"the boxes of {changed} of {len(images)} images are turned with the image, because of --exif-boxes stored"
    return results, [Fault(TURNED, source, what, "compare one of them with its boxes", warning=True)]


def not_confirmed(doubtful: Sequence[str], images: int, source: str) -> list[Fault]:
    """A warning if boxes may belong to the stored image, which no size confirms or excludes.

    doubtful: the names of these images;  images: their number with all others.
    """
    if not doubtful:
        return []
    what = (
        f"EXIF data turns {len(doubtful)} of {images} images without a size that shows whether the boxes were drawn "
        f"before or after turning; the first is {doubtful[0]}; the boxes are taken as drawn after turning"
    )
    remedy = (
        "compare one of them with its boxes, then add --exif-boxes upright, or --exif-boxes stored to turn the boxes"
    )
    return [Fault(NOT_CONFIRMED, source, what, remedy, warning=True)]
