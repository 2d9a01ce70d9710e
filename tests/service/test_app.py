import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.http.routes.answers import JSON, preferred
from service.http.routes.detect import OFFERED
from service.settings import Settings


def test_importing_the_service_brings_neither_torch_nor_onnx_nor_a_model():
    code = "import service.app, sys; print(*[m for m in ('torch', 'onnx', 'scipy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_two_applications_in_a_process_do_not_share_metrics():
    one, other = (create_app(Settings()).state.runtime.metrics for _ in range(2))
    one.shared.inc()
    assert one.registry.get_sample_value("detector_shared_total") == 1
    assert other.registry.get_sample_value("detector_shared_total") == 0


def test_every_metric_is_explained():
    scrape = create_app(Settings()).state.runtime.metrics.scrape().decode()
    families = list(text_string_to_metric_families(scrape))
    assert all(family.documentation for family in families)
    ours = [family.name for family in families if family.name.startswith("detector_")]
    assert len(ours) >= 14


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("application/x-npz", "application/x-npz"),
        ("application/x-npz;q=0.5, application/json;q=0.4", "application/x-npz"),
        ("application/json, application/x-npz", JSON),
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/*", "image/png"),
        ("IMAGE/JPEG; q=0.5", "image/jpeg"),
        ("application/json, image/png", JSON),
        ("image/png, application/json;q=0.9", "image/png"),
        ("image/png;q=0.1, */*", JSON),
        ("image/jpeg;q=0.5, image/png;q=0.8", "image/png"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", JSON),
        ("image/png;q=0", JSON),
        ("image/png;q=junk", JSON),
        (";;;,,,", JSON),
    ],
)
def test_another_form_than_json_is_only_for_who_prefers_it(accept, expected):
    assert preferred(accept, OFFERED) == expected


def test_images_are_not_for_who_cannot_have_them():
    assert preferred("image/png, application/x-npz;q=0.1", (JSON, "application/x-npz")) == "application/x-npz"
    assert preferred("image/png", (JSON,)) == JSON
