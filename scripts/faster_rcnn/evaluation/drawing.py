"""Draws boxes on images, and arranges images on sheets."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from faster_rcnn.data.dataset import Prediction

PALETTE = ((230, 57, 70), (29, 161, 242), (46, 196, 82), (255, 183, 3), (157, 78, 221), (255, 121, 198), (0, 200, 200))
TRUTH = (255, 255, 255)
EDGE = (0, 0, 0)  # around every outline, which would otherwise vanish on an image of its own colour
WRONG = (255, 60, 60)
COVERING, IDLE = (60, 230, 90), (150, 150, 150)  # colours of proposals that cover an object, and of all others
BACKGROUND = (24, 24, 24)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    captions: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    width: int | None = None,
) -> Image.Image:
    """A copy of `image` (uint8 [H, W, 3]) with an outline and a caption for each of `boxes` [G, 4].

    Each outline has a dark edge of one pixel around it, so that white shows on white.
    width: thickness of the outlines in pixels, without the edge; by default it grows with the image.
    """
    drawing = Image.fromarray(image)
    draw = ImageDraw.Draw(drawing)
    size = max(11, min(image.shape[:2]) // 30)
    for (x1, y1, x2, y2), caption, colour in zip(boxes.tolist(), captions, colours, strict=True):
        thickness = width or max(2, size // 6)
        draw.rectangle([x1 - 1, y1 - 1, x2 + 1, y2 + 1], outline=EDGE, width=thickness + 2)
        draw.rectangle([x1, y1, x2, y2], outline=colour, width=thickness)
        if caption:
            left, top = min(x1, drawing.width - draw.textlength(caption, font_size=size) - 4), max(0, y1 - size - 4)
            draw.rectangle(draw.textbbox((left, top), caption, font_size=size), fill=colour, outline=colour, width=2)
            draw.text((left, top), caption, fill=(0, 0, 0), font_size=size)
    return drawing


def draw_prediction(image: np.ndarray, prediction: Prediction, names: Sequence[str], threshold: float) -> Image.Image:
    """A copy of `image` with the detections that score at least `threshold`, one colour per class."""
    shown = prediction.scores >= threshold
    labels, scores = prediction.labels[shown].tolist(), prediction.scores[shown].tolist()
    captions = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    colours = [PALETTE[label % len(PALETTE)] for label in labels]
    return draw_boxes(image, prediction.boxes[shown], captions, colours)


def contact_sheet(images: Sequence[Image.Image], columns: int = 4, side: int = 360) -> Image.Image:
    """A sheet of images in rows of `columns`, each scaled to fit a square with sides of `side` pixels."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), BACKGROUND)
    for place, image in enumerate(images):
        scaled = image.copy()
        scaled.thumbnail((side - 8, side - 8))
        sheet.paste(scaled, (place % columns * side + 4, place // columns * side + 4))
    return sheet


def rescale(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The image (uint8 [H, W, 3]) resized to a longer side of `side` pixels, and the factor for coordinates in it."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)), factor


def with_caption(image: Image.Image, caption: str) -> Image.Image:
    """A copy of the image with the caption in a strip below it, wrapped to the image's width."""
    size = 15
    letters = max(8, int(image.width / (size * 0.55)))
    lines = textwrap.wrap(caption, letters) or [""]
    strip = len(lines) * (size + 5) + 8
    sheet = Image.new("RGB", (image.width, image.height + strip), BACKGROUND)
    sheet.paste(image, (0, 0))
    ImageDraw.Draw(sheet).text((5, image.height + 3), "\n".join(lines), fill=TRUTH, font_size=size, spacing=5)
    return sheet


def side_by_side(images: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """A sheet with the images in one row, `gap` pixels apart."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), BACKGROUND)
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + gap
    return sheet
