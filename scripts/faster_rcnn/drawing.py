"""Boxes onto pictures, for a person who wants to see what was learned."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from faster_rcnn.data.dataset import Prediction

PALETTE = ((230, 57, 70), (29, 161, 242), (46, 196, 82), (255, 183, 3), (157, 78, 221), (255, 121, 198), (0, 200, 200))
TRUTH = (255, 255, 255)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, captions: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """A copy of `image` (uint8 [H, W, 3]) with each of `boxes` [G, 4] outlined and captioned."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    size = max(11, min(image.shape[:2]) // 30)
    for (x1, y1, x2, y2), caption, colour in zip(boxes.tolist(), captions, colours, strict=True):
        draw.rectangle([x1, y1, x2, y2], outline=colour, width=max(2, size // 6))
        if caption:
            left, top = min(x1, picture.width - draw.textlength(caption, font_size=size) - 4), max(0, y1 - size - 4)
            draw.rectangle(draw.textbbox((left, top), caption, font_size=size), fill=colour, outline=colour, width=2)
            draw.text((left, top), caption, fill=(0, 0, 0), font_size=size)
    return picture


def draw_prediction(image: np.ndarray, prediction: Prediction, names: Sequence[str], threshold: float) -> Image.Image:
    """A copy of `image` with the detections that score at least `threshold`, a colour for each class."""
    shown = prediction.scores >= threshold
    labels, scores = prediction.labels[shown].tolist(), prediction.scores[shown].tolist()
    captions = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    colours = [PALETTE[label % len(PALETTE)] for label in labels]
    return draw_boxes(image, prediction.boxes[shown], captions, colours)


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 4, side: int = 360) -> Image.Image:
    """Pictures scaled into the squares of one sheet."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), (24, 24, 24))
    for place, picture in enumerate(pictures):
        scaled = picture.copy()
        scaled.thumbnail((side - 8, side - 8))
        sheet.paste(scaled, (place % columns * side + 4, place // columns * side + 4))
    return sheet
