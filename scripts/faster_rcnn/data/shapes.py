"""`shapes`: generated images of six classes of shapes, with exact boxes.

The images have 200 to 1000 pixels per side and aspect ratios from 1:2 to 2:1. Objects range in size from a twelfth of
the shorter side to the whole image. They are rotated and stretched, and may overlap or be cut by the border, but at
least MIN_VISIBLE of each is visible. They are filled with colours, gradients or stripes. Backgrounds are smooth,
striped, chequered or noisy, with lines and scraps that are not objects. Some images are empty. Image `index` of a split
depends on seed, split and index alone, so the data set needs no files and a training run never runs out of images.
"""

import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from faster_rcnn.data.dataset import Sample
from faster_rcnn.files import write_bytes, write_text

LABELS = ("circle", "ring", "triangle", "square", "star", "cross")
SPLITS = {"train": 0, "val": 1, "test": 2}
LENGTHS = {"train": 1_000_000, "val": 500, "test": 500}

MIN_VISIBLE = 0.65  # share of an object's area left after cuts and overlaps; with less, it may be unrecognisable
MIN_SIDE = 1 / 12  # shortest side of an object, as a share of the image's shorter side
EMPTY_SHARE = 0.08  # share of images without objects
FILLING_SHARE = 0.1  # share of images in which the first object is nearly as large as the image
MIN_CONTRAST = 90.0  # difference between an object's colour and the mean colour under it, summed over the channels
SUPERSAMPLING = 2  # objects are drawn at twice the resolution and averaged down, for smooth edges


class Shapes:
    """One split of the data set, for example `Shapes("train")[17]`.

    Raises ValueError for an unknown split; reading raises IndexError outside 0 … length - 1.
    """

    labels: tuple[str, ...] = LABELS

    def __init__(self, split: str, length: int | None = None, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"shapes has no split {split!r}; choose from: {', '.join(SPLITS)}")
        self.split = split
        self.seed = seed
        self.length = LENGTHS[split] if length is None else length

    def __len__(self) -> int:
        return self.length

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without drawing it."""
        return _draw_size(self._generator(index))

    def name(self, index: int) -> str:
        """Split, seed and index, which determine the image."""
        return f"{self.split}/{self.seed}/{index}"

    def __getitem__(self, index: int) -> Sample:
        rng = self._generator(index)
        height, width = _draw_size(rng)
        background = _background(rng, height, width)
        _draw_clutter(rng, background)
        pixels = np.asarray(background).astype(np.float32)
        boxes, labels = draw_objects(rng, pixels)
        return Sample(_photograph(rng, pixels), boxes, labels)

    def _generator(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.length:
            raise IndexError(f"shapes/{self.split} has images 0..{self.length - 1}, not {index}")
        return np.random.default_rng([self.seed, SPLITS[self.split], index])


def write_coco(dataset: Shapes, folder: Path) -> None:
    """Writes a split as `folder/<split>/*.png` and `folder/annotations/<split>.json` in COCO's format."""
    image_folder = folder / dataset.split
    image_folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in tqdm(range(len(dataset)), desc=f"writing {dataset.split}", unit="image"):
        sample = dataset[index]
        name = f"{index:06d}.png"
        png = io.BytesIO()
        Image.fromarray(sample.image).save(png, "PNG")
        write_bytes(image_folder / name, png.getvalue())
        height, width = sample.image.shape[:2]
        images.append({"id": index + 1, "file_name": f"{dataset.split}/{name}", "height": height, "width": width})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(dataset.labels)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_text(folder / "annotations" / f"{dataset.split}.json", json.dumps(document))


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width, 200 to 1000 each; the logarithm of the aspect ratio is uniform from 1:2 to 2:1."""
    half_log_ratio = rng.uniform(-0.5, 0.5) * math.log(2)
    low, high = 200 * math.exp(abs(half_log_ratio)), 1000 * math.exp(-abs(half_log_ratio))
    mean_side = math.exp(rng.uniform(math.log(low), math.log(high)))
    return round(mean_side * math.exp(half_log_ratio)), round(mean_side * math.exp(-half_log_ratio))


def _background(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    kind = rng.choice(["smooth", "stripes", "chequers", "noise"], p=[0.4, 0.2, 0.15, 0.25])
    if kind == "smooth":
        coarse = rng.integers(0, 256, (*rng.integers(1, 7, 2), 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    if kind == "noise":
        cell = int(rng.integers(2, 24))
        coarse = rng.integers(0, 256, (height // cell + 1, width // cell + 1, 3), dtype=np.uint8)
        base = rng.integers(0, 256, 3)
        mild = (base + (coarse - 128.0) * rng.uniform(0.1, 0.5)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(mild).resize((width, height), Image.Resampling.BILINEAR)
    first = rng.integers(0, 256, 3).astype(np.float32)
    second = (first + rng.uniform(-70, 70, 3)).clip(0, 255)
    wave = _stripes(rng, height, width)
    if kind == "chequers":
        wave = np.abs(wave - _stripes(rng, height, width))
    return Image.fromarray((first + (second - first) * wave[..., None]).astype(np.uint8))


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A wave [H, W] between 0 and 1: sharp or soft stripes at any angle."""
    angle = rng.uniform(0, math.pi)
    period = rng.uniform(8, 80)
    y = np.arange(height, dtype=np.float32)[:, None] * math.sin(angle)
    x = np.arange(width, dtype=np.float32)[None] * math.cos(angle)
    wave = np.sin((x + y) * (2 * math.pi / period)) * rng.choice([1.0, 20.0])
    return wave.clip(-1, 1) * 0.5 + 0.5


def _draw_clutter(rng: np.random.Generator, background: Image.Image) -> None:
    """Draws lines, open curves and thin scraps, which a detector must learn to ignore."""
    draw = ImageDraw.Draw(background)
    width, height = background.size
    for _ in range(rng.integers(0, 9)):
        colour = tuple(rng.integers(0, 256, 3).tolist())
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        reach = rng.uniform(0.05, 0.6) * min(width, height)
        angle = rng.uniform(0, 2 * math.pi)
        stroke = int(rng.integers(1, 2 + min(width, height) // 80))
        kind = rng.integers(3)
        if kind == 0:
            draw.line([(x, y), (x + reach * math.cos(angle), y + reach * math.sin(angle))], fill=colour, width=stroke)
        elif kind == 1:
            start = math.degrees(angle)
            draw.arc([x, y, x + reach, y + reach], start, start + rng.uniform(30, 150), fill=colour, width=stroke)
        else:
            corners = [(x + rng.uniform(-0.5, 0.5) * reach, y + rng.uniform(-0.06, 0.06) * reach) for _ in range(4)]
            draw.polygon(corners, fill=colour)


def draw_objects(rng: np.random.Generator, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws objects into `pixels`, float32 [H, W, 3].  Returns boxes float32 [G, 4] and labels int64 [G]."""
    height, width = pixels.shape[:2]
    owner = np.full((height, width), -1, np.int16)
    boxes: list[list[float]] = []
    labels: list[int] = []
    wholes: list[float] = []
    visible: list[int] = []
    count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, 11))
    filling = rng.random() < FILLING_SHARE
    for turn in range(count):
        for _ in range(8):
            label = int(rng.integers(len(LABELS)))
            outline, hole = _outline(rng, label, height, width, filling=filling and turn == 0)
            placed = _rasterise(outline, hole, height, width)
            if placed is None:
                continue
            top, left, cover = placed
            window = np.s_[top : top + cover.shape[0], left : left + cover.shape[1]]
            solid = cover > 0.5
            area = int(solid.sum())
            whole = _polygon_area(outline) - _polygon_area(hole)
            hidden = np.bincount(owner[window][solid] + 1, minlength=len(labels) + 1)[1:]
            left_over = np.array(visible, np.int64) - hidden
            if area < MIN_VISIBLE * whole or (left_over < MIN_VISIBLE * np.array(wholes)).any():
                continue
            fill = _fill(rng, pixels[window], cover)
            pixels[window] += (fill - pixels[window]) * cover[..., None]
            owner[window][solid] = len(labels)
            boxes.append(_bounds(outline, top, left, solid, height, width))
            labels.append(label)
            wholes.append(whole)
            visible = [*left_over.tolist(), area]
            break
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def _bounds(outline: np.ndarray, top: int, left: int, solid: np.ndarray, height: int, width: int) -> list[float]:
    """The box x1, y1, x2, y2 of an object: around its corners, or around its pixels if the border cuts it."""
    (x1, y1), (x2, y2) = outline.min(axis=0), outline.max(axis=0)
    if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
        return [x1, y1, x2, y2]
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]


def _outline(
    rng: np.random.Generator, label: int, height: int, width: int, filling: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Corners [V, 2] of an object as x, y in pixels, and those of its hole, [0, 2] if it has none."""
    shorter = min(height, width)
    points = _unit_outline(LABELS[label])
    angle = rng.uniform(0, 2 * math.pi)
    if filling:
        angle = rng.uniform(-0.1, 0.1) + rng.integers(4) * math.pi / 2
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    squeeze = math.exp(rng.uniform(-0.3, 0.3))
    shape = (points * [squeeze, 1 / squeeze]) @ turn
    low, high = shape.min(axis=0), shape.max(axis=0)
    shape = (shape - (low + high) / 2) / (high - low).max()  # the longer side is 1
    if filling:
        shape = shape / (high - low) * (high - low).max() * [width, height] * rng.uniform(0.75, 1.0)
        centre = np.array([width, height]) / 2 + rng.uniform(-0.05, 0.05, 2) * [width, height]
    else:
        shortest = (shape.max(axis=0) - shape.min(axis=0)).min()
        smallest = MIN_SIDE * shorter / shortest
        shape = shape * math.exp(rng.uniform(math.log(smallest), math.log(0.7 * shorter)))
        centre = rng.uniform(0, 1, 2) * [width, height]
    outline = shape + centre
    if LABELS[label] == "ring":
        return outline, centre + shape * rng.uniform(0.5, 0.7)
    return outline, np.zeros((0, 2))


def _unit_outline(name: str) -> np.ndarray:
    """Corners [V, 2] of a shape around the origin."""

    def on_circle(count: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
        angles = np.arange(count) * (2 * math.pi / count)
        radius = np.resize(radii, count)
        return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)

    if name in ("circle", "ring"):
        return on_circle(64)
    if name == "triangle":
        return on_circle(3)
    if name == "square":
        return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    if name == "star":
        return on_circle(10, (1.0, 0.45))
    arm = 0.34
    quarter = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
    turns = [np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]])]
    return np.concatenate([quarter, *(quarter @ turn for turn in turns)])


def _polygon_area(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _rasterise(outline: np.ndarray, hole: np.ndarray, height: int, width: int) -> tuple[int, int, np.ndarray] | None:
    """The part of an object inside the image: top, left, and the share of each pixel that it covers.

    None if fewer than 2 pixels per side are inside.
    """
    left, top = np.floor(outline.min(axis=0)).astype(int).clip(0)
    right, bottom = np.ceil(outline.max(axis=0)).astype(int).clip(None, [width, height])
    if right - left < 2 or bottom - top < 2:
        return None
    fine = Image.new("L", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
    draw = ImageDraw.Draw(fine)
    draw.polygon([(x, y) for x, y in ((outline - [left, top]) * SUPERSAMPLING - 0.5).tolist()], fill=255)
    if len(hole):
        draw.polygon([(x, y) for x, y in ((hole - [left, top]) * SUPERSAMPLING - 0.5).tolist()], fill=0)
    return int(top), int(left), np.asarray(fine.reduce(SUPERSAMPLING), np.float32) / 255


def _fill(rng: np.random.Generator, beneath: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """An object's fill [H, W, 3], a colour, a gradient or stripes in contrast to the pixels that it covers."""
    height, width = cover.shape
    under = beneath[cover > 0.5].mean(axis=0)
    while True:
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if np.abs(colour - under).sum() > MIN_CONTRAST:
            break
    kind = rng.integers(3)
    if kind == 0:
        return np.broadcast_to(colour, (height, width, 3))
    other = (colour + rng.uniform(-60, 60, 3)).clip(0, 255).astype(np.float32)
    if kind == 1:
        share = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
        if rng.random() < 0.5:
            share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        return colour + (other - colour) * np.broadcast_to(share, (height, width, 1))
    return colour + (other - colour) * _stripes(rng, height, width)[..., None]


def _photograph(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Adds blur and sensor noise.  Returns uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    if rng.random() < 0.3:
        sharp = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        pixels = np.asarray(sharp.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.5)))).astype(np.float32)
    if rng.random() < 0.7:
        strength = rng.uniform(2, 16)
        # Repeating one tile of noise is not visible; 3 million random numbers would take longer than all other steps.
        tile = rng.standard_normal((128, 128, 3), dtype=np.float32) * strength
        pixels = pixels + np.tile(tile, (height // 128 + 1, width // 128 + 1, 1))[:height, :width]
    return pixels.clip(0, 255).astype(np.uint8)
