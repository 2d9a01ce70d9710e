"""Which objects of a sample count."""

import numpy as np

from faster_rcnn.data.dataset import Sample


def test_crowds_and_difficult_objects_do_not_count_unless_difficult_ones_are_requested() -> None:
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    crowd, difficult = np.array([False, True, False]), np.array([False, False, True])
    image = np.zeros((8, 8, 3), np.uint8)
    sample = Sample(image, boxes, np.array([4, 5, 6]), crowd, difficult=difficult, proposals=boxes[:1])
    assert sample.counted().tolist() == [True, False, False]
    assert sample.counted(with_difficult=True).tolist() == [True, False, True]
    assert sample.objects().labels.tolist() == [4]
    assert sample.objects(with_difficult=True).boxes.tolist() == boxes[[0, 2]].tolist()
    assert sample.objects().proposals is sample.proposals
    assert Sample(image, boxes, np.array([4, 5, 6])).counted().all()
