"""A graph in the form for CUDA: the answers of PyTorch and of the portable graph, with fewer launches and waits."""

import copy
import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.graph.export import export_onnx
from faster_rcnn.graph.exportable import exportable
from faster_rcnn.graph.launches import count_launches
from faster_rcnn.graph.placement import check_placement, cpu_nodes
from faster_rcnn.graph.verification import verify
from service.engine.onnx_subgraph import extract
from tests.faster_rcnn.lively import lively_torchvision
from tests.faster_rcnn.trained import SHAPES, answers, trained_on_shapes

IMAGES = [Shapes("test")[index].image for index in range(8)]
SLOW_ON_CUDA = {"NonMaxSuppression", "NonZero", "GatherND", "ScatterND", "CumSum"}


def operators(path: Path) -> Counter[str]:
    """Of a graph and the bodies of its loops."""

    def of(graph: onnx.GraphProto) -> Counter[str]:
        found = Counter(node.op_type for node in graph.node)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    found += of(attribute.g)
        return found

    return of(onnx.load(path).graph)


def batch(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two images, one of a single colour, and one without any pixel, with noise around them."""
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    sizes = []
    for place, image in enumerate([*IMAGES[:2], np.full((height, width - 17, 3), 127, np.uint8), IMAGES[0][:0]]):
        part = image[:height, :width]
        images[place, : part.shape[0], : part.shape[1]] = part
        sizes.append(part.shape[:2])
    return images, np.array(sizes, np.int64)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[FasterRCNN, Path, Path]:
    """A trained detector, its published graph, and its graph in the form for CUDA."""
    path = tmp_path_factory.mktemp("cuda") / "model.onnx"
    detector = trained_on_shapes()
    export_onnx(detector, path, form="cuda")
    return detector, SHAPES / "model.onnx", path


@pytest.mark.contract("1.2", "1.3")
def test_a_trained_detector_passes_the_verification(published: tuple[FasterRCNN, Path, Path]) -> None:
    detector = copy.copy(published[0])
    detector.resize = ResizeRule(96, 192)  # small images; the graph takes any size
    verification = verify(published[2], detector, [(96, 192), (192, 96)], IMAGES)
    assert verification.to_pytorch.unmatched == verification.to_alone.unmatched == 0


def test_the_answers_are_those_of_the_published_graph(published: tuple[FasterRCNN, Path, Path]) -> None:
    images, sizes = batch(160, 192)
    by_both = zip(answers(published[1], images, sizes), answers(published[2], images, sizes), strict=False)
    for portable, cuda in by_both:  # the published graph has no output left_out, which is the last
        np.testing.assert_allclose(cuda, portable, atol=1e-3)


@pytest.mark.contract("1.4")
def test_the_service_extracts_the_proposals_with_the_loop_that_they_need(
    published: tuple[FasterRCNN, Path, Path], tmp_path: Path
) -> None:
    images, sizes = batch(96, 128)
    part = tmp_path / "proposals.onnx"
    part.write_bytes(extract(published[2].read_bytes(), ["num_proposals", "proposals", "objectness"]))
    assert operators(part)["Loop"] == 1
    for alone, whole in zip(answers(part, images, sizes), answers(published[2], images, sizes)[4:7], strict=True):
        np.testing.assert_array_equal(alone, whole)


@pytest.mark.contract("1.5")
def test_a_run_launches_less_and_waits_less(published: tuple[FasterRCNN, Path, Path]) -> None:
    _, portable, cuda = published
    check_placement(cuda)
    assert cpu_nodes(cuda) == []
    assert SLOW_ON_CUDA & operators(portable).keys()
    assert not SLOW_ON_CUDA & operators(cuda).keys()
    before, after = (count_launches(path, 8, 288, 384) for path in (portable, cuda))
    assert after.kernels < before.kernels
    assert after.waits < before.waits
    # neither grows with the number of images: two suppressions of two rounds each, and the results
    assert after == count_launches(cuda, 32, 288, 384)
    assert after.waits == 2 * 2 + 1


def test_the_features_may_be_in_float16(tmp_path: Path) -> None:
    detector = trained_on_shapes()
    export_onnx(detector, tmp_path / "model.onnx", precision="fp16", form="cuda")
    detector.resize = ResizeRule(96, 192)
    verify(tmp_path / "model.onnx", detector, [(96, 192), (192, 96)], IMAGES[:4], precision="fp16")


@pytest.mark.skipif("PUBLISH_BUILDERS" not in os.environ, reason="PUBLISH_BUILDERS is not set: two long exports")
@pytest.mark.contract("1.2", "1.3", "1.5")
def test_a_model_of_torchvision_gives_the_same_answers_with_fewer_launches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=31, min_size=96, max_size=160, box_score_thresh=0.02
    )  # fmt: skip
    detector = exportable(lively_torchvision(model))
    portable, cuda = tmp_path / "portable.onnx", tmp_path / "cuda.onnx"
    export_onnx(detector, portable)
    export_onnx(detector, cuda, form="cuda")
    verify(cuda, detector, [(96, 160), (160, 96)], IMAGES[:4])
    assert not SLOW_ON_CUDA & operators(cuda).keys() - {"GatherND"}  # with which the anchors are taken
    assert operators(cuda)["Loop"] == 3  # its 4500 candidates are suppressed in blocks
    before, after = (count_launches(path, 8, 96, 160) for path in (portable, cuda))
    assert after.kernels < before.kernels
    assert after.waits < before.waits


def test_the_form_for_cuda_is_not_exported_for_the_cpu_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give provider 'any' or form 'portable'"):
        export_onnx(trained_on_shapes(), tmp_path / "model.onnx", provider="cpu", form="cuda")
