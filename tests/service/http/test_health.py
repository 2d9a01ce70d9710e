"""What /readyz and /metrics say about GPUs, for reports made here."""

import asyncio

import httpx
import pytest

from service import runtime
from service.app import create_app
from service.engine.probe import Fault, ProbeReport
from service.engine.providers import CPU, Choice
from service.settings import Settings
from tests.service import graphs

OLD = Fault(
    "driver", "the driver 570.86.10 supports CUDA 12.8, but onnxruntime-gpu 1.31.1 needs CUDA 13.0", "update it"
)
GPU = ProbeReport(0, "NVIDIA L4", "sm_89", "570.86.10", "12.8", fault=OLD)


@pytest.mark.contract("3.7")
def test_readyz_and_the_metrics_name_a_gpu_and_why_it_is_not_used(monkeypatch, tmp_path):
    graphs.publish(tmp_path / "store")
    monkeypatch.setattr(runtime, "choose", lambda *_: Choice(CPU, (GPU,), f"{OLD.reason}; {OLD.remedy}"))

    async def get() -> tuple[dict, str]:
        app = create_app(Settings(model_store=tmp_path / "store", model_poll_seconds=0))
        await app.state.runtime.start()
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
                return (await client.get("/readyz")).json(), (await client.get("/metrics")).text
        finally:
            app.state.runtime.stop()

    ready, metrics = asyncio.run(get())
    assert (ready["provider"], ready["why_cpu"]) == (CPU, f"{OLD.reason}; update it")
    assert ready["gpus"] == [
        {
            "device": 0,
            "gpu": "NVIDIA L4",
            "architecture": "sm_89",
            "driver": "570.86.10",
            "driver_cuda": "12.8",
            "cuda": "",
            "cudnn": "",
            "fault": "driver",
            "reason": f"{OLD.reason}; update it",
        }
    ]
    (line,) = (line for line in metrics.splitlines() if line.startswith("detector_gpu_info{"))
    assert 'device="0"' in line
    assert 'gpu="NVIDIA L4"' in line
    assert 'fault="driver"' in line
