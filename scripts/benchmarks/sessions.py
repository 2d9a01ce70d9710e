"""ONNX Runtime sessions with the service's options, on the requested provider and on no other."""

import onnxruntime

from service.engine.providers import CUDA, open_session


def session_on(
    provider: str, graph: bytes, options: onnxruntime.SessionOptions, tf32: bool = False
) -> onnxruntime.InferenceSession:
    """Raises what `open_session` raises."""
    if provider == CUDA:
        onnxruntime.preload_dlls()  # the wheels of the cuda extra provide CUDA where the system has none
    return open_session(graph, provider, options, tf32)
