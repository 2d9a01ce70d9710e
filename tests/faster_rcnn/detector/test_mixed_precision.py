"""The precision in which a device trains."""

import torch

from faster_rcnn.detector.mixed_precision import autocast_dtype


def test_a_cpu_uses_bfloat16_only_if_it_has_instructions_for_it() -> None:
    capabilities = torch.cpu.get_capabilities()
    has_instructions = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    assert (autocast_dtype(torch.device("cpu")) is torch.bfloat16) == has_instructions
