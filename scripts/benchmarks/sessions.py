"""ONNX Runtime sessions with the service's options, on the requested provider and on no other."""

import onnxruntime

from service.engine.providers import CUDA, open_session


def session_on(
    provider: str, graph: bytes, options: onnxruntime.SessionOptions, tf32: bool = False
) -> onnxruntime.InferenceSession:
    """Raises ValueError if the graph cannot be loaded, or would run on the CPU although CUDA was requested."""
    if provider == CUDA:
        onnxruntime.preload_dlls()  # the wheels of the cuda extra provide CUDA where the system has none
    session = open_session(graph, provider, options, tf32)
    if provider not in session.get_providers():
        raise ValueError(f"ONNX Runtime does not start {provider} here and would use {session.get_providers()[0]}")
    return session
