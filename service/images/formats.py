"""The image formats that can be read, and which of them are switched on.

A format needs a decoder that reads the size before it decodes a pixel, so that limits can be checked first. JPEG XL is
not among them: its only plugin for Pillow, pillow-jxl-plugin, decodes all pixels when it opens a file, and has a
licence (GPL 3) that this project cannot ask of everyone who installs it.

The choice holds for the whole process. It is made once, before the first image is decoded.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Iterable
from typing import NamedTuple

from PIL import AvifImagePlugin, Image, features

from service.images import tiff


class Format(NamedTuple):
    """A format that this project can read.

    name     as people write it
    module   the module of another package that reads it, or ""
    extra    the extra of this project that installs the module
    feature  what Pillow must have been built with, or ""
    """

    name: str
    module: str = ""
    extra: str = ""
    feature: str = ""


# By the names of Pillow, which are also those of the setting IMAGE_FORMATS, in lower case.
FORMATS = {
    "JPEG": Format("JPEG"),
    "PNG": Format("PNG"),
    "WEBP": Format("WebP", feature="webp"),
    "BMP": Format("BMP"),
    "GIF": Format("GIF"),
    "TIFF": Format("TIFF", feature="libtiff"),
    "AVIF": Format("AVIF", feature="avif"),
    "HEIF": Format("HEIC", module="pillow_heif", extra="heif"),
}
# Those that every browser shows. The libraries of the others are larger or have seen less use with hostile files, so an
# operator switches them on.
DEFAULT = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
OTHER_NAMES = {"JPG": "JPEG", "TIF": "TIFF", "HEIC": "HEIF"}
PACKAGE = "faster-rcnn-service"


class UnknownFormatError(ValueError):
    """A name that stands for no format."""


class MissingLibraryError(ValueError):
    """The library for a format is not installed. The message says how to install it."""


_accepted: tuple[str, ...] = DEFAULT


def accepted() -> tuple[str, ...]:
    """Pillow's names of the formats that are switched on."""
    return _accepted


def parse(text: str) -> tuple[str, ...]:
    """The names in a list such as "jpeg,png,tiff", in the order of FORMATS. Raises UnknownFormatError."""
    words = [word.strip().upper() for word in text.split(",")]
    names = {OTHER_NAMES.get(word, word) for word in words if word}
    if not names or names - FORMATS.keys():
        raise UnknownFormatError(f"must be one or more of {', '.join(map(str.lower, FORMATS))}, separated by commas")
    return tuple(name for name in FORMATS if name in names)


def missing(names: Iterable[str]) -> str:
    """What must be installed to read the formats `names`, as a clause; "" if nothing is missing."""
    for name in names:
        known = FORMATS[name]
        if known.feature and not features.check(known.feature):
            return f"this build of Pillow cannot read {known.name}; install Pillow from its wheel on PyPI"
        if known.module and not _is_installed(known.module):
            return f"{known.name} needs the extra {known.extra}: pip install '{PACKAGE}[{known.extra}]'"
    return ""


def accept(names: Collection[str]) -> None:
    """Switches on the formats `names`, and all others off. Raises MissingLibraryError."""
    global _accepted
    if fault := missing(names):
        raise MissingLibraryError(fault)
    if "TIFF" in names:
        tiff.silence_libtiff()
        logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # it logs faults of the client's file
    if "AVIF" in names:
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the service has a thread per core already
    if "HEIF" in names:
        _register_heif()
    _accepted = tuple(name for name in FORMATS if name in names)


def accept_all() -> None:
    """Switches on every format whose library is installed, for images of one's own."""
    accept([name for name in FORMATS if not missing([name])])


def in_words(names: Iterable[str]) -> str:
    """For example "JPEG, PNG and WebP"."""
    *first, last = [FORMATS[name].name for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def _is_installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _register_heif() -> None:
    """Registers pillow-heif's format, so that it decodes the image itself, in the calling thread, and nothing else."""
    import pillow_heif

    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
