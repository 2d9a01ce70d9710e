"""FIXED_SHAPES over HTTP, on the CPU: the same answers, and where to see which versions do without."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import Server, distinct, encoded, scene
from tests.service import graphs

GREY = encoded(Image.new("RGB", (96, 64), (102, 102, 102)))  # brightness 0.4


def without_names(make):
    """A graph like those of `make`, but its canvas has no named dimensions."""

    def made(**kind):
        model = make(**kind)
        for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
            dimension.ClearField("dim_param")
        return model

    return made


@pytest.mark.contract("5.7")
def test_a_version_that_does_without_fixed_shapes_is_named_and_answers(start, tmp_path, monkeypatch):
    graphs.publish(tmp_path, "named")
    monkeypatch.setattr(graphs, "graph", without_names(graphs.graph))
    graphs.publish(tmp_path, "unnamed")
    settings = {"FIXED_SHAPES": "true", "BATCH_PIXELS": 8 * 64 * 96, "DEFAULT_MODEL": "named", "PRECISION": "tf32"}
    server = start(MODEL_STORE=tmp_path, **settings).ready()
    for model in ("named", "unnamed"):
        assert server.http.post(f"/detect?model={model}", content=GREY).json()["scores"] == [0.4, 0.2]
    fault = "cpu:0: its inputs have dimensions without names; export it again"
    assert server.http.get("/readyz").json()["without_fixed_shapes"] == [{"model": "unnamed/1", "reason": fault}]
    assert server.metric("detector_model_info", model="named", shapes="fixed") == 1
    assert server.metric("detector_model_info", model="unnamed", shapes="dynamic") == 1
    log = "".join(server.lines)
    assert "model unnamed/1 is served without FIXED_SHAPES on cpu:0" in log
    assert log.count("PRECISION=tf32 has no effect on the CPU") == 1


@pytest.mark.contract("1.2")
@pytest.mark.contract("5.7")
@pytest.mark.contract("2.2")
def test_the_embedded_model_gives_the_same_answers_on_fewer_canvases_and_in_filled_up_batches(server, start):
    # two images fit into a batch on 288 x 432, and one on 288 x 576
    fixed: Server = start(FIXED_SHAPES="true", BATCH_PIXELS=250_000, ENGINE_THREADS=1).ready()
    sizes = [(400, 300), (300, 400), (300, 200), (320, 180), (200, 200), (640, 200)]
    images = [distinct(encoded(scene(*size, seed)), seed) for seed, size in enumerate(sizes * 2)]
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(lambda data: fixed.http.post("/detect?proposals=true", content=data).json(), images))
    found = 0
    for data, answer in zip(images, together, strict=True):
        expected = server.http.post("/detect?proposals=true", content=data).json()
        assert answer["labels"] == expected["labels"]
        found += len(answer["labels"])
        np.testing.assert_allclose(answer["boxes"], expected["boxes"], atol=0.02)  # 0.01, and rounded to 0.01
        np.testing.assert_allclose(answer["scores"], expected["scores"], atol=2e-4)
        np.testing.assert_allclose(answer["proposals"]["boxes"], expected["proposals"]["boxes"], atol=0.02)
    assert found > len(images)
    assert fixed.http.get("/readyz").json()["without_fixed_shapes"] == []
