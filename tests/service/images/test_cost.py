"""The estimated cost of an image, compared with the memory that decoding and drawing really take.

The files are made here. A process of their own measures them one after the other, by the kernel's high-water mark.
"""

import io
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from service.images import cost, formats
from service.images.cost import FIXED_BYTES, LIGHT_BYTES, MIB
from service.images.decode import MAX_PIXELS, ORIENTATION, decode
from service.images.fit import Geometry
from tests.service.images.png16 import png16
from tests.service.images.test_formats import tiff_file

GEOMETRY = Geometry(((384, 384), (288, 384), (384, 288)), 288, 384)
SIDE = 2500
CELL = 32
FAST_X265 = {"preset": "ultrafast"}
# An estimate is useful if it is not far above the peak. The fixed part and the strips dominate for images of this size.
USEFUL_FACTOR, USEFUL_REST = 3, FIXED_BYTES + 12 * MIB


def noise(mode: str, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Random squares, or random pixels if a pixel is a bit."""
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(deep_squares(1, 2**16, width, height)[..., 0])
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, (height, width)).astype(bool))
    bands = len(Image.new(mode, (1, 1)).getbands())
    fine = squares(rng.integers(0, 256, (-(-height // CELL), -(-width // CELL), bands), dtype=np.uint8), width, height)
    image = Image.frombytes(mode, (width, height), np.ascontiguousarray(fine).tobytes())
    if mode == "P":
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def squares(colours: np.ndarray, width: int, height: int) -> np.ndarray:
    """Squares of CELL pixels, which compress fast: `colours` [rows, columns, channels] to [height, width, channels]."""
    return colours.repeat(CELL, 0).repeat(CELL, 1)[:height, :width]


def deep_squares(channels: int, values: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Squares with 16 bits per channel, of random values below `values`."""
    shape = (-(-height // CELL), -(-width // CELL), channels)
    return squares(np.random.default_rng(0).integers(0, values, shape, dtype=np.uint16), width, height)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


def run_length_encoded_bmp() -> bytes:
    """A BMP whose every line is runs of 255 equal pixels."""
    runs, rest = divmod(SIDE, 255)
    line = b"\xff\x07" * runs + bytes([rest, 9]) + b"\0\0"
    pixels = line * SIDE + b"\0\1"
    sizes = (40, SIDE, SIDE, 1 | 8 << 16, 1, len(pixels), 0, 0, 256, 0)
    header = b"".join(size.to_bytes(4, "little") for size in sizes)
    start = 14 + len(header) + 1024
    return (
        b"BM" + (start + len(pixels)).to_bytes(4, "little") + bytes(4) + start.to_bytes(4, "little")
        + header + bytes(range(256)) * 4 + pixels
    )  # fmt: skip


def deep_heic() -> bytes:
    deep = np.asarray(noise("RGBA")).astype(np.uint16) << 8
    out = io.BytesIO()
    made = pillow_heif.from_bytes("RGBA;16", (SIDE, SIDE), deep.tobytes())
    made.save(out, chroma=444, exif=turned().tobytes(), enc_params=FAST_X265)
    return out.getvalue()


def files() -> dict[str, bytes]:
    def saved(image: Image.Image, format: str, **options: object) -> bytes:
        out = io.BytesIO()
        image.save(out, format, **options)
        return out.getvalue()

    other = noise("RGB").transpose(Image.Transpose.ROTATE_180)
    made = {
        f"png {mode}": saved(noise(mode), "PNG", compress_level=1) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")
    }
    made |= {
        "png turned": saved(noise("RGB"), "PNG", compress_level=1, exif=turned()),
        "png palette with transparency": saved(noise("P"), "PNG", compress_level=1, transparency=bytes(range(256))),
        "png tall": saved(noise("RGBA", 100, SIDE * SIDE // 100), "PNG", compress_level=1),
        "png wide": saved(noise("RGBA", SIDE * SIDE // 100, 100), "PNG", compress_level=1),
        "jpeg": saved(noise("RGB"), "JPEG"),
        "jpeg progressive": saved(noise("RGB"), "JPEG", progressive=True),
        "jpeg progressive 4:4:4 turned": saved(noise("RGB"), "JPEG", progressive=True, subsampling=0, exif=turned()),
        "jpeg progressive cmyk": saved(noise("CMYK"), "JPEG", progressive=True),
        "webp": saved(noise("RGB"), "WEBP", method=0),
        "webp lossless with alpha": saved(noise("RGBA"), "WEBP", lossless=True, method=0, quality=0),
        "webp animated": saved(noise("RGB"), "WEBP", method=0, save_all=True, append_images=[other]),
        "gif": saved(noise("P"), "GIF"),
        "gif with transparency": saved(noise("P"), "GIF", transparency=3),
        "bmp": saved(noise("RGB"), "BMP"),
        "bmp run lengths": run_length_encoded_bmp(),
        "tiff": saved(noise("RGB"), "TIFF"),
        "tiff of one strip, turned": saved(
            noise("RGB"), "TIFF", compression="tiff_lzw", strip_size=2**30, exif=turned()
        ),
        "tiff of one jpeg": saved(noise("RGBA").convert("RGB"), "TIFF", compression="jpeg", strip_size=2**30),
        "tiff cmyk": saved(noise("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
        "avif": saved(noise("RGB"), "AVIF", speed=10),
        "avif with alpha, 4:4:4, turned": saved(noise("RGBA"), "AVIF", speed=10, subsampling="4:4:4", exif=turned()),
        "heic": saved(noise("RGB"), "HEIF", enc_params=FAST_X265),
        "heic of 10 bits with alpha, 4:4:4, turned": deep_heic(),
    }
    rng = np.random.default_rng(0)
    deep = deep_squares(4, 2**12)
    for channels, compression in ((3, 8), (4, 1)):
        pixels = deep[..., :channels].tobytes()
        body = zlib.compress(pixels, 1) if compression == 8 else pixels
        tags = {256: (SIDE,), 257: (SIDE,), 258: (16,) * channels, 259: (compression,), 262: (2,), 273: (8,), 274: (6,)}
        tags |= {277: (channels,), 278: (SIDE,), 279: (len(body),)} | ({338: (2,)} if channels == 4 else {})
        made[f"tiff of 16 bits, {channels} channels, one strip, turned"] = tiff_file(tags, body)
    made |= {
        f"png of 16 bits, {channels} channels": png16(rng.integers(0, 2**12, (SIDE, SIDE, channels), np.uint16))
        for channels in (2, 3, 4)
    }
    return made


MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy as np
from service.images import cost, formats
from service.images.decode import MAX_PIXELS, decode
from service.images.drawing import Drawing
from service.images.fit import Geometry
from tests.service.images.png16 import png16
from tests.service.images.test_formats import tiff_file

formats.accept_all()

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

WHITE = 4095  # so that the low bytes of 16-bit samples are decoded too
answer = {"boxes": np.ones((0, 4)), "scores": np.ones(0), "labels": []}
def calls(data):
    if kind == "later":  # the canvas is so large that every image may wait for its resize
        geometry = Geometry(((1344, 1344),), 1000, 1344, True, WHITE, resize_later=True)
        yield lambda check: decode(data, geometry, MAX_PIXELS, check), lambda h: cost.of_decoding(h, data, geometry)
        return
    for antialias in (True, False):
        geometry = Geometry(((384, 384), (288, 384), (384, 288)), 288, 384, antialias, WHITE)
        yield lambda check: decode(data, geometry, MAX_PIXELS, check), lambda h: cost.of_decoding(h, data, geometry)
    for media_type in ("image/png", "image/jpeg"):
        drawing = Drawing(data, MAX_PIXELS, answer, [], media_type, WHITE)
        yield drawing.draw, lambda h, kind=media_type: cost.of_drawing(h, data, kind, WHITE)

kind, *paths = sys.argv[1:]
first = True
for path in [paths[0], *paths]:  # the first one loads the codecs
    data = Path(path).read_bytes()
    rows = []
    for call, estimate in calls(data):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before, found = status("VmRSS"), []
        call(lambda header: found.append(estimate(header).memory))
        rows.append((status("VmHWM") - before, found[0]))
    if not first:
        print(json.dumps(rows), flush=True)
    first = False
"""


def faults(folder: Path, kind: str, made: dict[str, bytes], calls: tuple[str, ...]) -> list[str]:
    """The files and calls whose estimates are too low, or far too high."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells the peak of a process and lets it be reset")
    paths = []
    for number, data in enumerate(made.values()):
        paths.append(folder / str(number))
        paths[-1].write_bytes(data)
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, *paths],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = []
    for name, line in zip(made, ran.stdout.splitlines(), strict=True):
        for what, (peak, estimate) in zip(calls, json.loads(line), strict=True):
            if not peak <= estimate <= USEFUL_FACTOR * peak + USEFUL_REST:
                found.append(f"{name}, {what}: {peak / MIB:.1f} MiB, estimated {estimate / MIB:.1f}")
    return found


def test_no_image_needs_more_memory_than_estimated(tmp_path):
    formats.accept_all()  # registers the encoder of HEIC
    calls = ("decode", "decode without antialiasing", "draw as PNG", "draw as JPEG")
    found = faults(tmp_path, "now", files(), calls)
    assert not found, "\n".join(found)


@pytest.mark.contract("2.5")
def test_no_image_that_an_engine_will_resize_needs_more_memory_than_estimated(tmp_path, encode):
    """The images have 2500 x 2500 pixels, fewer than four for each pixel of the canvas."""
    made = {
        "png L": encode(noise("L"), compress_level=1),
        "png": encode(noise("RGB"), compress_level=1),
        "png turned": encode(noise("RGB"), compress_level=1, exif=turned()),
        "jpeg turned": encode(noise("RGB"), "JPEG", exif=turned()),
    }
    geometry = Geometry(((1344, 1344),), 1000, 1344, resize_later=True)
    assert all(decode(data, geometry).pending for data in made.values())
    found = faults(tmp_path, "later", made, ("decode",))
    assert not found, "\n".join(found)


def priced(data: bytes, geometry: Geometry = GEOMETRY) -> cost.Cost:
    found: list[cost.Cost] = []
    decode(data, geometry, MAX_PIXELS, lambda header: found.append(cost.of_decoding(header, data, geometry)))
    return found[0]


def test_a_photograph_is_light_and_a_large_drawing_heavy(encode):
    photograph = encode(noise("RGB", 4000, 3000), "JPEG", quality=85)
    assert priced(photograph).light  # the codec reduces it to 500 x 375
    assert priced(encode(noise("RGBA", 1920, 1080), compress_level=1)).light
    # 4000 x 3000 pixels of four bytes are 46 MiB
    assert priced(encode(Image.new("RGB", (4000, 3000)))).memory > 45 * MIB > LIGHT_BYTES


def test_a_progressive_jpeg_keeps_all_its_coefficients(encode):
    # 2 bytes x 3 samples per pixel without subsampling, 2 x 1.5 with 4:2:0
    image, pixels = noise("RGB", 1000, 800), 800_000
    baseline = priced(encode(image, "JPEG")).memory
    for subsampling, each in ((0, 6), (2, 3)):
        progressive = encode(image, "JPEG", progressive=True, subsampling=subsampling)
        assert priced(progressive).memory == pytest.approx(baseline + each * pixels, abs=200_000)


def test_a_thumbnail_in_a_photograph_does_not_count_as_a_scan(encode):
    exif = Image.Exif()
    exif[0x9286] = encode(noise("RGB", 160, 120), "JPEG")  # a whole JPEG within the EXIF data
    image = noise("RGB", 1000, 800)
    plain, with_thumbnail = encode(image, "JPEG"), encode(image, "JPEG", exif=exif)
    assert with_thumbnail.count(b"\xff\xda") == 2
    assert priced(with_thumbnail).memory - priced(plain).memory == len(with_thumbnail) - len(plain)


def test_compressed_text_in_a_png_is_limited(encode):
    """20 kB of a file must not become 20 MB of text."""
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(2**20 - 1))
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    data = encode(noise("L", 40, 30))
    start = data.index(b"IDAT") - 4
    with pytest.raises(ValueError, match="PNG data is broken"):
        decode(data[:start] + 20 * chunk + data[start:], GEOMETRY)
    assert decode(data[:start] + chunk + data[start:], GEOMETRY).width == 40
