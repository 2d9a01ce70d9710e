"""The floating-point precision in which a device computes during training."""

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 if the device computes faster in it, else None; float16 would need loss scaling."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
