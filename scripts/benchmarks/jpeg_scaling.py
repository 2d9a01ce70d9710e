"""What the JPEG codec's own scaling costs in AP and saves in time: `python -m benchmarks.jpeg_scaling`.

Test images, enlarged and saved as JPEG, go through the service's own decoding and engine in two ways: as uploads do,
with the codec scaling by 1/2, 1/4 or 1/8 on the way down, and with every pixel decoded; the same files, in turns.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image, JpegImagePlugin
from tqdm import tqdm

from benchmarks.tables import markdown
from faster_rcnn.commands.command_line import run_command
from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.data.sources import check_labels, open_dataset
from faster_rcnn.evaluation import coco_ap
from faster_rcnn.evaluation.measure import without_pixels
from service.engine.engine import Engine
from service.engine.model import load_model
from service.images.decode import decode
from service.images.fit import Canvas, Geometry

EMBEDDED = Path(__file__).resolve().parents[2] / "model_store/shapes/1"
FACTORS = (1, 2, 4)
QUALITY = 90
LONGEST = 4000  # pixels; a telephone's photograph


def every_pixel(data: bytes, geometry: Geometry) -> Canvas:
    """As `images.decode`, without the codec's scaling."""
    with mock.patch.object(JpegImagePlugin.JpegImageFile, "draft", return_value=None):
        return decode(data, geometry)


WAYS: dict[str, Callable[[bytes, Geometry], Canvas]] = {
    "every pixel": every_pixel,
    "the codec scales": decode,
}


def main() -> None:
    options = _options()
    engine = Engine(load_model(options.model), threads=1)
    dataset = open_dataset(options.data, options.split, skip_bad_boxes=True)
    check_labels(dataset, tuple(engine.card.labels), str(options.model))
    rows = []
    for factor in FACTORS:
        for way, (metrics, seconds) in measure(engine, dataset, factor).items():
            rows.append(
                [f"{factor} ×", way, f"{metrics['AP']:.4f}", f"{metrics['AP50']:.4f}", f"{1e3 * np.mean(seconds):.2f}"]
            )
    print(markdown(["enlarged", "decoded", "AP@[.5:.95]", "AP@0.5", "ms an image"], rows))


def measure(engine: Engine, dataset: Dataset, factor: float) -> dict[str, tuple[dict[str, Any], list[float]]]:
    """COCO's metrics of each way on the images enlarged `factor` times, and the seconds that each decoding took."""
    truths: list[Sample] = []
    predictions: dict[str, list[Prediction]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for index in tqdm(range(len(dataset)), desc=f"{factor} ×", unit="image", leave=False):
        sample = dataset[index]
        truths.append(without_pixels(sample))
        upload, shrink = enlarged(sample.image, factor)
        for way, decoded_by in WAYS.items():
            began = time.process_time()
            canvas = decoded_by(upload, engine.card.geometry)
            seconds[way].append(time.process_time() - began)
            result = engine.run([canvas])[0]
            predictions[way].append(Prediction(result.boxes * shrink, result.scores, result.labels, None))
    return {way: (coco_ap(truths, predictions[way], dataset.labels), seconds[way]) for way in WAYS}


def enlarged(photo: np.ndarray, factor: float) -> tuple[bytes, np.ndarray]:
    """`photo`, uint8 [H, W, 3], as a JPEG `factor` times as large (or LONGEST), and what takes its boxes back."""
    height, width = photo.shape[:2]
    factor = min(factor, LONGEST / max(height, width))
    size = round(width * factor), round(height * factor)
    out = io.BytesIO()
    Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=QUALITY)
    return out.getvalue(), np.array([width / size[0], height / size[1]] * 2, dtype=np.float32)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the JPEG codec's own scaling costs in AP and saves in time.")
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="a published version; default: %(default)s")
    parser.add_argument("--data", default="shapes", help="shapes, coco:DIR or voc:DIR; faulty boxes are left out")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run_command("jpeg_scaling", main))
