"""RESIZE_ON_GPU over HTTP. No GPU is needed: one service is made to resize on the engines of the CPU, too."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.end_to_end.conftest import answer, distinct, encoded, scene

FORCED = """
import runpy
from service.engine.options import EngineOptions
EngineOptions.resizes = lambda options, provider: True
runpy.run_module("service", run_name="__main__")
"""


@pytest.mark.contract("2.5")
def test_the_answers_are_those_of_images_that_were_resized_on_the_cpu(server, start):
    forced = start(("-c", FORCED), FIXED_SHAPES="false", BATCH_PIXELS=500_000).ready()
    sizes = [(400, 300), (300, 400), (640, 480), (320, 180), (200, 200), (640, 200)]
    images = [distinct(encoded(scene(*size, seed)), seed) for seed, size in enumerate(sizes * 2)]
    images += [encoded(scene(640, 480, 20).convert("RGBA")), encoded(scene(1600, 1200, 21), "JPEG")]
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(lambda data: answer(forced.http.post("/detect", content=data)), images))
    found = 0
    for data, ours in zip(images, together, strict=True):
        expected = answer(server.http.post("/detect", content=data))
        assert ours["image"] == expected["image"]
        assert ours["labels"] == expected["labels"]
        np.testing.assert_allclose(ours["boxes"], expected["boxes"], atol=0.02)  # 0.01 (1.2), and rounded to 0.01
        np.testing.assert_allclose(ours["scores"], expected["scores"], atol=2e-4)
        found += len(ours["labels"])
    assert found > len(images)
    assert "ordinary images are resized on the CPU provider" in "".join(forced.lines)


def test_on_the_cpu_the_setting_has_no_effect_and_the_log_says_so_once(start):
    plain = start(RESIZE_ON_GPU="true", ENGINE_THREADS=1).ready()
    lines = "".join(plain.lines)
    assert lines.count("RESIZE_ON_GPU=true has no effect on the CPU") == 1
    assert "ordinary images are resized" not in lines
