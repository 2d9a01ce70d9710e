"""`faster-rcnn export` publishes torchvision's four models with random weights, at their own image sizes.

With random weights, some models are sensitive to rounding. The two ResNets take about ten minutes each on two cores,
and up to 8 GB of memory, so these tests run on request only:

PUBLISH_BUILDERS=1 python -m pytest -s tests/faster_rcnn/commands/test_export_builders.py
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from faster_rcnn.torchvision_adapter.builders import BUILDERS
from tests.faster_rcnn.commands.conftest import Done
from tests.faster_rcnn.lively import lively_torchvision

pytestmark = pytest.mark.skipif("PUBLISH_BUILDERS" not in os.environ, reason="PUBLISH_BUILDERS is not set")


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.contract("1.3")
def test_a_model_with_random_weights_is_published(builder: str, run: Callable[..., Done], tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torchvision.models.get_model(builder, weights=None, weights_backbone=None, num_classes=21)
    torch.save(lively_torchvision(model).state_dict(), tmp_path / "model.pth")
    (tmp_path / "labels.txt").write_text("".join(f"class {number}\n" for number in range(20)))

    done = run(
        "export", "--torchvision", builder, "--checkpoint", tmp_path / "model.pth",
        "--labels", tmp_path / "labels.txt", "--name", "random", "--store", tmp_path / "store",
    )  # fmt: skip

    assert done.code == 0, done.err.splitlines()[-1]
    card = json.loads((tmp_path / "store" / "random" / "1" / "model.json").read_text())
    print(builder, json.dumps(card["verification"], indent=1))
    assert card["verification"]["boxes_compared"] > 5000
