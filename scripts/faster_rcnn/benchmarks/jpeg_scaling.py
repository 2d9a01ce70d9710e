"""What the JPEG codec's own scaling costs in AP and saves in time: `python -m faster_rcnn.benchmarks.jpeg_scaling`.

The test pictures of `shapes`, enlarged and saved as JPEG, go through the service's own decoding and engine, once as they
do and once with every pixel decoded; so the codec scales by 1/2, 1/4 or 1/8 on the way down.
"""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, JpegImagePlugin

from faster_rcnn.benchmarks.tables import markdown
from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.evaluation import collect
from faster_rcnn.evaluation.coco import coco_ap
from service import images, store
from service.engine import Engine

EMBEDDED = Path(__file__).resolve().parents[3] / "model_store/shapes/1"
QUALITY = 90
LONGEST = 4000  # pixels; a telephone's photograph


@dataclass
class Enlarged:
    """A predictor for pictures enlarged `factor` times; `seconds` of decoding add up."""

    engine: Engine
    factor: float
    scaling: bool
    seconds: list[float] = field(default_factory=list)

    def __call__(self, sample: Sample) -> Prediction:
        height, width = sample.image.shape[:2]
        factor = min(self.factor, LONGEST / max(height, width))
        size = round(width * factor), round(height * factor)
        upload = io.BytesIO()
        Image.fromarray(sample.image).resize(size, Image.Resampling.LANCZOS).save(upload, "JPEG", quality=QUALITY)
        began = time.perf_counter()
        if self.scaling:
            canvas = images.decode(upload.getvalue(), self.engine.card.geometry)
        else:
            with mock.patch.object(JpegImagePlugin.JpegImageFile, "draft", lambda *_: None):
                canvas = images.decode(upload.getvalue(), self.engine.card.geometry)
        self.seconds.append(time.perf_counter() - began)
        result = self.engine.run([canvas])[0]
        back = np.array([width / size[0], height / size[1]] * 2, dtype=np.float32)
        return Prediction(result.boxes * back, result.scores, result.labels, None)


def main() -> None:
    engine = Engine(store.load(EMBEDDED), threads=1)
    dataset = Shapes("test")
    rows = []
    for factor in (1, 2, 4):
        row = [f"{factor} x"]
        for scaling in (True, False):
            predict = Enlarged(engine, factor, scaling)
            metrics = coco_ap(*collect(dataset, predict), dataset.labels)
            row += [f"{metrics['AP']:.4f}", f"{metrics['AP50']:.4f}", f"{1e3 * np.median(predict.seconds):.1f}"]
        rows.append(row)
    head = ["enlarged", "AP", "AP@0.5", "decode ms", "AP, every pixel", "AP@0.5", "decode ms"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
