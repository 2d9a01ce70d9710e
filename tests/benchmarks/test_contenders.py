"""The contenders do the same work on the same pixels."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection import FasterRCNN

from benchmarks.contenders import graph_contender, torchvision_contender, torchvision_file_contender
from benchmarks.preparation import Source, prepare, random_model, trace, without_resizing
from faster_rcnn.detector.resize import ResizeRule
from service.engine.engine import Engine
from service.engine.model import load_model
from service.engine.providers import CPU, CUDA, ProviderUnavailableError, pick_provider
from service.images.decode import decode

EMBEDDED = Path(__file__).parents[2] / "model_store" / "shapes" / "1"
BUILDER = "fasterrcnn_mobilenet_v3_large_320_fpn"
PIXELS = np.random.default_rng(0).integers(0, 256, (96, 130, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    return random_model(BUILDER)


def test_the_graph_finds_what_the_service_finds_in_a_batch_one_by_one_and_without_the_head() -> None:
    engine = Engine(load_model(EMBEDDED))
    canvas = decode((EMBEDDED / "example.jpg").read_bytes(), engine.card.geometry)
    wanted = engine.run([canvas])[0]
    common = (EMBEDDED / "model.onnx", canvas.pixels, canvas.size, CPU, 1)
    for more in ({}, {"loop": True}):
        turn = graph_contender(*common, **more)(3, 0.0)
        assert turn.found == (len(wanted.boxes), len(wanted.proposals))
        assert len(turn.seconds) == 1
    assert graph_contender(*common, proposals_only=True)(2, 0.0).found == (None, len(wanted.proposals))


def test_a_turn_lasts_as_long_as_asked() -> None:
    contender = graph_contender(EMBEDDED / "model.onnx", PIXELS, (96, 160), CPU, 1)
    turn = contender(1, 0.2)
    assert sum(turn.seconds) >= 0.2
    assert len(turn.seconds) > 1


@pytest.mark.skipif(pick_provider() == CUDA, reason="CUDA starts on this machine")
@pytest.mark.filterwarnings("ignore:.*CUDAExecutionProvider")
def test_a_contender_for_cuda_never_runs_on_the_cpu() -> None:
    with pytest.raises(ProviderUnavailableError, match="did not load CUDAExecutionProvider"):
        graph_contender(EMBEDDED / "model.onnx", PIXELS, (96, 160), CUDA, 1)


def test_the_torchvision_contender_does_not_resize(model: FasterRCNN, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "model.pt")
    found = torchvision_contender(tmp_path / "model.pt", PIXELS, CPU, torch.get_num_threads())(2, 0.0).found
    image = torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255
    # torchvision scales an image that already has the right size by 1
    model = deepcopy(model)
    model.transform.min_size, model.transform.max_size = (96,), 130
    with torch.no_grad():
        assert found.detections == len(model([image])[0]["boxes"])
    assert without_resizing(model).transform([image])[0].image_sizes == [(96, 130)]


def test_a_random_model_is_the_same_each_time_and_its_features_keep_their_scale(model: FasterRCNN) -> None:
    again = random_model(BUILDER)
    for name, values in again.state_dict().items():
        torch.testing.assert_close(values, model.state_dict()[name], rtol=0, atol=0)
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 128, 160))
    assert all(1e-3 < float(one.std()) < 1e3 for one in features.values())


def test_all_contenders_get_the_same_checkpoint(model: FasterRCNN, tmp_path: Path) -> None:
    checkpoint, saved = tmp_path / "mine.pth", tmp_path / "model.pt"
    torch.save(model.state_dict(), checkpoint)
    prepared = prepare(Source(BUILDER, None, checkpoint), saved, None, "fp32")
    assert prepared == (ResizeRule(320, 640), 32)  # from the builder's name and torchvision's documentation
    loaded = torch.load(saved, weights_only=False).state_dict()
    assert all(torch.equal(values, loaded[name]) for name, values in model.state_dict().items())


def test_the_file_that_torchvision_exports_finds_the_same_boxes_as_torchvision(
    model: FasterRCNN, tmp_path: Path
) -> None:
    saved, graph = tmp_path / "model.pt", tmp_path / "traced.onnx"
    torch.save(model, saved)
    trace(saved, graph, PIXELS)
    in_onnx = torchvision_file_contender(graph, PIXELS, CPU, 1)(2, 0.0).found
    assert in_onnx == torchvision_contender(saved, PIXELS, CPU, torch.get_num_threads())(1, 0.0).found


def test_an_unknown_builder_is_refused_with_a_list_of_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no detector yolo; take one of fasterrcnn_resnet50_fpn_v2"):
        prepare(Source("yolo", None, None), tmp_path / "model.pt", None, "fp32")
