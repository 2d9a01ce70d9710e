"""Draws detections on the image that they were found in."""

from __future__ import annotations

import colorsys
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from service.images import encode
from service.images.decode import HeaderCheck, upright
from service.images.depth import WHITE

JPEG_MAX_SIDE = 65_500  # libjpeg's limit
GOLDEN_RATIO = 0.618034  # hues at steps of this share of the colour circle are distinct for any number of labels


class SideTooLongError(ValueError):
    """The image has a side longer than its file format allows."""


class Drawing(NamedTuple):
    """A drawing to be made: the image in `data`, upright, with boxes drawn on it, as PNG or JPEG.

    answer      boxes [D, 4], scores [D] and labels [D, as names], best first
    labels      all labels of the model, whose order decides the colours
    media_type  image/png or image/jpeg
    white       the model's, as in `Geometry`
    """

    data: bytes
    max_pixels: int
    answer: dict[str, Any]
    labels: list[str]
    media_type: str
    white: int = WHITE

    def draw(self, before_pixels: HeaderCheck | None = None) -> bytes:
        """The encoded drawing. `before_pixels` is as for `upright`.

        Raises SideTooLongError, and what `upright` raises.
        """

        def check(header: Image.Image) -> None:
            if self.media_type == "image/jpeg" and max(header.size) > JPEG_MAX_SIDE:
                raise SideTooLongError(f"A JPEG side has at most {JPEG_MAX_SIDE} pixels. Ask for image/png.")
            if before_pixels:
                before_pixels(header)

        image = upright(self.data, self.max_pixels, check, self.white)
        self._draw_boxes(image)
        return encode.jpeg(image) if self.media_type == "image/jpeg" else encode.png(image)

    def _draw_boxes(self, image: Image.Image) -> None:
        pen = ImageDraw.Draw(image)
        side = max(image.size)
        line = max(1, round(side / 400))
        font = ImageFont.load_default(max(10, min(64, round(side / 45))))
        boxes, scores, labels = (self.answer[name] for name in ("boxes", "scores", "labels"))
        rows = list(zip(boxes.tolist(), scores.tolist(), labels, strict=True))
        for box, score, label in reversed(rows):  # in reverse, so that the best one is drawn on top
            colour = colour_of(self.labels.index(label))
            pen.rectangle(box, outline=colour, width=line)
            _tag(pen, image.size, box, f"{label} {score:.0%}", font, colour)


def colour_of(index: int) -> tuple[int, int, int]:
    """A label's colour as RGB, the same in every image: strong, and dark enough for white letters."""
    red, green, blue = colorsys.hls_to_rgb((0.02 + index * GOLDEN_RATIO) % 1, 0.4, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _tag(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: list[float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> None:
    """Writes the label above the box, or inside it if there is no room above, and always within the image."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(1, (bottom - top) // 4)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    y = max(0, min(y, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + pad - left, y + pad - top), text, fill="white", font=font)
