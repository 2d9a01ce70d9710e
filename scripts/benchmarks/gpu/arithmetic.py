"""C6 and C7: how exactly, and how fast, the provider computes one convolution of a backbone's usual size.

N  images;  C  channels, in and out;  h, w  a map
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.gpu.engines import median_seconds, open_engine
from benchmarks.gpu.inputs import one_colour
from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import Clock, Setup
from benchmarks.sessions import session_on
from service.engine.providers import CPU, CUDA, session_options

C = 256
EXACT = 1e-5  # float32 leaves about 1e-6 after 2304 products; TF32, with ten bits, 2e-4 or more
SIDE = 14  # pixels of the map in C6, small because NumPy computes it too
SLOWER = 1.1


def exactness(setup: Setup, clock: Clock) -> Finding:
    """C6: with TF32 off, no engine of cuDNN rounds the factors of a float32 convolution."""
    del clock
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, C, SIDE, SIDE), np.float32)
    weight = rng.standard_normal((C, C, 3, 3), np.float32)
    expected = convolved(images.astype(np.float64), weight.astype(np.float64))
    found = Finding()
    for tf32 in (False, True):
        session = session_on(setup.provider, convolution(weight), session_options(1), tf32)
        error = np.abs(session.run(None, {"x": images})[0] - expected).max() / np.abs(expected).max()
        found.figures["largest error, TF32 on" if tf32 else "largest error, TF32 off"] = float(error)
    error = found.figures["largest error, TF32 off"]
    found.expect(error < EXACT, f"with TF32 off the error is {error:.2g}, {EXACT:g} is allowed: factors were rounded")
    return found


def half_precision(setup: Setup, clock: Clock) -> Finding:
    """C7: a float16 graph is opened so that its convolutions use tensor cores."""
    del clock
    h, w = (8, 8) if setup.rehearsal else (100, 168)
    n = setup.times(8, 1)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, C, h, w), np.float32).astype(np.float16)
    weight = (rng.standard_normal((C, C, 3, 3), np.float32) / 48).astype(np.float16)
    operations = 2 * n * h * w * C * C * 9
    found = Finding()
    rates = {}
    for tf32 in (False, True):
        session = session_on(setup.provider, convolution(weight), session_options(1), tf32)
        binding = session.io_binding()  # the map stays on the device, so that only the convolution is timed
        binding.bind_ortvalue_input("x", _on_device(images, setup.provider))
        binding.bind_output("y", _name(setup.provider))

        def run(session: object = session, binding: object = binding) -> None:
            session.run_with_iobinding(binding)  # type: ignore[attr-defined]
            binding.synchronize_outputs()  # type: ignore[attr-defined]

        rates[tf32] = operations / median_seconds(run, setup.times(30, 3)) / 1e12
        found.figures[f"TFLOP/s, use_tf32={int(tf32)}"] = rates[tf32]
    found.figures["use_tf32=1 against 0"] = rates[True] / rates[False]
    if not setup.rehearsal:
        _check_how_it_is_opened(setup, rates, found)
    return found


def _check_how_it_is_opened(setup: Setup, rates: dict[bool, float], found: Finding) -> None:
    engine = open_engine(setup, setup.torchvision, "fp16", few=True)
    options = engine.prepare([one_colour(engine.geometry.canvases[0])]).chosen.session.get_provider_options()
    opened = options[CUDA].get("use_tf32") == "1"
    found.figures["use_tf32 of a float16 graph"] = int(opened)
    slower = rates[True] / rates[opened]
    found.expect(slower <= SLOWER, f"a float16 graph runs {slower:.1f} times slower than it could; {SLOWER} is allowed")


def convolution(weight: np.ndarray) -> bytes:
    """Y = a 3×3 convolution of x [N, C, h, w] with padding 1, in the type of `weight` [C, C, 3, 3]."""
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    node = helper.make_node("Conv", ["x", "weight"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    x, y = (helper.make_tensor_value_info(name, kind, ["N", len(weight), "h", "w"]) for name in "xy")
    graph = helper.make_graph([node], "convolution", [x], [y], [numpy_helper.from_array(weight, "weight")])
    return bytes(onnx_model(graph).SerializeToString())


def onnx_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A model of opset 18, which every version of ONNX Runtime that serves our graphs can read."""
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def convolved(images: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same convolution by NumPy, as nine products of matrices."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = images.shape[2:]
    return sum(
        np.einsum("oc,nchw->nohw", weight[:, :, row, column], padded[:, :, row : row + height, column : column + width])
        for row in range(3)
        for column in range(3)
    )


def _on_device(values: np.ndarray, provider: str) -> object:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(values, _name(provider), 0)


def _name(provider: str) -> str:
    return "cpu" if provider == CPU else "cuda"
