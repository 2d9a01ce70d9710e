"""A published model on one core, from a JPEG to boxes."""

import os
from collections.abc import Callable

from PIL import Image

from benchmarks.images import jpeg
from benchmarks.tables import markdown
from benchmarks.timing import in_turns
from service.engine.engine import Engine
from service.engine.model import Model
from service.images.decode import decode


def one_core(model: Model, image: Image.Image, seconds: float) -> str:
    """A table of the time that each step from a 640×480 JPEG to boxes takes on one core."""
    if not hasattr(os, "sched_setaffinity"):
        return "One core: not measured, this system cannot bind a process to a core.\n"
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        engine = Engine(model, threads=1)
        upload = jpeg(image, (640, 480))
        canvas = decode(upload, engine.geometry)
        parts: dict[str, Callable[[], object]] = {
            "decode": lambda: decode(upload, engine.geometry),
            "detect": lambda: engine.run([canvas]),
            "proposals only": lambda: engine.run([canvas], proposals_only=True),
            "decode to boxes": lambda: engine.run([decode(upload, engine.geometry)]),
        }
        taken = in_turns(parts, seconds)
    finally:
        os.sched_setaffinity(0, allowed)
    rows = [[name, f"{1e3 * t:.2f}", f"{1 / t:.1f}"] for name, t in taken.items()]
    return "One core, a 640×480 JPEG:\n\n" + markdown(["part", "ms", "images/s"], rows)
