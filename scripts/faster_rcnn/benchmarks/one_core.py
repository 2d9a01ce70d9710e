"""A published model on one core, from a JPEG to boxes."""

import os
from collections.abc import Callable

from PIL import Image

from faster_rcnn.benchmarks.pictures import jpeg
from faster_rcnn.benchmarks.tables import markdown
from faster_rcnn.benchmarks.timing import in_turns
from service import images, store
from service.engine import Engine


def one_core(model: store.Model, picture: Image.Image, seconds: float) -> str:
    """A table of the parts of the way of a 640×480 JPEG, all of it on one core."""
    if not hasattr(os, "sched_setaffinity"):
        return "One core: not measured, this system cannot bind a process to a core.\n"
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        engine = Engine(model, threads=1)
        upload = jpeg(picture, (640, 480))
        canvas = images.decode(upload, engine.card.geometry)
        parts: dict[str, Callable[[], object]] = {
            "decode": lambda: images.decode(upload, engine.card.geometry),
            "detect": lambda: engine.run([canvas]),
            "proposals only": lambda: engine.run([canvas], proposals_only=True),
            "decode to boxes": lambda: engine.run([images.decode(upload, engine.card.geometry)]),
        }
        taken = in_turns(parts, seconds)
    finally:
        os.sched_setaffinity(0, allowed)
    rows = [[name, f"{1e3 * t:.2f}", f"{1 / t:.1f}"] for name, t in taken.items()]
    return "One core, a 640×480 JPEG:\n\n" + markdown(["part", "ms", "images/s"], rows)
