"""Plots of classes without detections."""

from pathlib import Path

import numpy as np

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.plots import plot_precision_recall
from faster_rcnn.evaluation.voc import voc_ap


def test_a_class_without_detections_still_has_a_panel(tmp_path: Path) -> None:
    image, box, label = np.zeros((100, 100, 3), np.uint8), np.array([[10, 10, 50, 50]], np.float32), np.zeros(1, int)
    nothing = Prediction(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
    plot_precision_recall(voc_ap([Sample(image, box, label)], [nothing], ("cat",)), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000
