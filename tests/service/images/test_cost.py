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
from service.images.cost import FIXED_BYTES, LIGHT_BYTES, METADATA_COPIES, MIB
from service.images.decode import MAX_PIXELS, ORIENTATION, decode
from service.images.fit import Geometry
from tests.service.images.png16 import chunk, png16
from tests.service.images.test_formats import tiff_file

GEOMETRY = Geometry(((384, 384), (288, 384), (384, 288)), 288, 384)
# A byte for each of 2200 x 2200 pixels is 4.6 MiB, more than the parts that do not grow with the image can hide. It is
# also above the size from which the C library returns memory at once.
SIDE = 2200
CELL = 32
FAST_X265 = {"preset": "ultrafast"}
# An estimate is useful if it is not far above the peak. The fixed part and the strips dominate for images of this size.
USEFUL_FACTOR, USEFUL_REST = 3, FIXED_BYTES + 12 * MIB


def noise(mode: str, width: int, height: int) -> Image.Image:
    """Random pixels, which cannot be compressed."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), np.random.default_rng(0).bytes(width * height * channels))


def squares(mode: str, width: int, height: int) -> Image.Image:
    """Random squares of CELL pixels, which compress to a small file."""
    if mode == "I;16":
        return Image.fromarray(deep_squares(1, 2**16, width, height)[..., 0])
    shape = (-(-height // CELL), -(-width // CELL), len(Image.new(mode, (1, 1)).getbands()))
    random = np.random.default_rng(0)
    if mode == "1":
        return Image.fromarray(enlarged(random.integers(0, 2, shape, dtype=np.uint8), width, height)[..., 0] > 0)
    pixels = enlarged(random.integers(0, 256, shape, dtype=np.uint8), width, height)
    image = Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes())
    if mode == "P":
        image.putpalette(random.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def enlarged(colours: np.ndarray, width: int, height: int) -> np.ndarray:
    """Each of `colours` [rows, columns, channels] as a square, cut to [height, width, channels]."""
    return colours.repeat(CELL, 0).repeat(CELL, 1)[:height, :width]


def deep_squares(channels: int, values: int, width: int, height: int) -> np.ndarray:
    """Squares with 16 bits per channel, of random values below `values`."""
    shape = (-(-height // CELL), -(-width // CELL), channels)
    return enlarged(np.random.default_rng(0).integers(0, values, shape, dtype=np.uint16), width, height)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


def run_length_encoded_bmp(side: int) -> bytes:
    """A BMP whose every line is runs of 255 equal pixels."""
    runs, rest = divmod(side, 255)
    line = b"\xff\x07" * runs + bytes([rest, 9]) + b"\0\0"
    pixels = line * side + b"\0\1"
    sizes = (40, side, side, 1 | 8 << 16, 1, len(pixels), 0, 0, 256, 0)
    header = b"".join(size.to_bytes(4, "little") for size in sizes)
    start = 14 + len(header) + 1024
    return (
        b"BM" + (start + len(pixels)).to_bytes(4, "little") + bytes(4) + start.to_bytes(4, "little")
        + header + bytes(range(256)) * 4 + pixels
    )  # fmt: skip


def deep_heic(side: int) -> bytes:
    deep = np.asarray(squares("RGBA", side, side)).astype(np.uint16) << 8
    out = io.BytesIO()
    made = pillow_heif.from_bytes("RGBA;16", (side, side), deep.tobytes())
    made.save(out, chroma=444, exif=turned().tobytes(), enc_params=FAST_X265)
    return out.getvalue()


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pngs(side: int) -> dict[str, bytes]:
    def png(image: Image.Image, **options: object) -> bytes:
        return saved(image, "PNG", compress_level=1, **options)

    made = {f"png {mode}": png(squares(mode, side, side)) for mode in ("1", "L", "LA", "P", "I;16")}
    palette, area = squares("P", side, side), side * side
    made |= {
        "png turned": png(squares("RGB", side, side), exif=turned()),
        "png palette with transparency": png(palette, transparency=bytes(range(256))),
        "png tall": png(squares("RGBA", 100, area // 100)),
        "png wide": png(squares("RGBA", area // 100, 100)),
        "png noise": png(noise("RGBA", side, side)),
    }
    for channels in (2, 4):
        made[f"png of 16 bits, {channels} channels"] = png16(deep_squares(channels, 2**12, side, side))
    random = np.random.default_rng(0).integers(0, 2**12, (side, side, 3), np.uint16)
    return made | {"png of 16 bits, noise": png16(random)}


def jpegs(side: int) -> dict[str, bytes]:
    rgb = squares("RGB", side, side)
    return {
        "jpeg": saved(rgb, "JPEG"),
        "jpeg grey": saved(squares("L", side, side), "JPEG"),
        "jpeg progressive": saved(rgb, "JPEG", progressive=True),
        "jpeg progressive 4:4:4 turned": saved(rgb, "JPEG", progressive=True, subsampling=0, exif=turned()),
        "jpeg progressive cmyk": saved(squares("CMYK", side, side), "JPEG", progressive=True),
        "jpeg progressive noise, cut": saved(noise("RGB", side, side), "JPEG", progressive=True)[:-1000] + b"\xff\xd9",
    }


def tiffs(side: int) -> dict[str, bytes]:
    rgb, one_strip = squares("RGB", side, side), {"strip_size": 2**30, "exif": turned()}
    made = {
        "tiff": saved(rgb, "TIFF"),
        "tiff of one strip, turned": saved(rgb, "TIFF", compression="tiff_lzw", **one_strip),
        "tiff YCbCr": saved(rgb.convert("YCbCr"), "TIFF", compression="tiff_lzw", strip_size=2**30),
        "tiff of one jpeg": saved(rgb, "TIFF", compression="jpeg", strip_size=2**30),
        "tiff palette": saved(squares("P", side, side), "TIFF", compression="packbits"),
        "tiff cmyk": saved(squares("CMYK", side, side), "TIFF", compression="tiff_adobe_deflate"),
    }
    for channels, compression in ((1, 8), (4, 1)):
        pixels = deep_squares(channels, 2**12, side, side).tobytes()
        body = zlib.compress(pixels, 1) if compression == 8 else pixels
        colours = 1 if channels == 1 else 2  # black is 0; RGB
        tags = {256: (side,), 257: (side,), 258: (16,) * channels, 259: (compression,), 262: (colours,)}
        tags |= {273: (8,), 274: (6,), 277: (channels,), 278: (side,), 279: (len(body),)}
        tags |= {338: (2,)} if channels == 4 else {}
        made[f"tiff of 16 bits, {channels} channels, one strip, turned"] = tiff_file(tags, body)
    return made


def others(side: int) -> dict[str, bytes]:
    rgb, rgba, palette = (squares(mode, side, side) for mode in ("RGB", "RGBA", "P"))
    gif = saved(palette, "GIF")
    screen = (side + 1).to_bytes(2, "little")
    return {
        "webp": saved(rgb, "WEBP", method=0),
        "webp with alpha": saved(rgba, "WEBP", method=0),
        "webp lossless noise": saved(noise("RGBA", side, side), "WEBP", lossless=True, method=0, quality=0),
        "webp animated": saved(rgb, "WEBP", method=0, save_all=True, append_images=[rgb.transpose(Image.Transpose(3))]),
        "gif": gif,
        "gif on a larger screen": gif[:6] + screen * 2 + gif[10:],
        "gif with transparency": saved(palette, "GIF", transparency=3),
        "bmp": saved(rgb, "BMP"),
        "bmp run lengths": run_length_encoded_bmp(side),
        "avif with alpha, 4:4:4, turned": saved(rgba, "AVIF", speed=10, subsampling="4:4:4", exif=turned()),
        "heic of 10 bits with alpha, 4:4:4, turned": deep_heic(side),
    }


def metadata(side: int) -> dict[str, bytes]:
    """Small images whose files are as large as `side` squared, because of their EXIF data or profile."""
    small, size = Image.new("RGB", (400, 300)), side * side
    exif = turned().tobytes() + bytes(size)
    segments = b"".join(b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(0xFFFD - 6) for _ in range(size // 0xFFFD))
    jpeg, png = saved(small, "JPEG"), saved(small, "PNG")
    start = png.index(b"IDAT") - 4
    text = ("\U0001f600" + "\u00e9" * 500_000).encode()  # four bytes for each character as str
    texts = b"".join(chunk(b"iTXt", b"a%d\0\1\0\0\0" % number + zlib.compress(text)) for number in range(2))
    return {
        "png with compressed text": png[:start] + texts + png[start:],
        "jpeg with EXIF data": jpeg[:2] + segments + jpeg[2:],
        "png with EXIF data": png[:start] + chunk(b"eXIf", exif[6:]) + png[start:],
        "webp with EXIF data": saved(small, "WEBP", exif=exif),
        "avif with a profile": saved(small, "AVIF", icc_profile=bytes(size)),
        "heic with EXIF data": saved(small, "HEIF", exif=exif),
    }


def files(side: int) -> dict[str, bytes]:
    return pngs(side) | jpegs(side) | tiffs(side) | others(side) | metadata(side)


MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy as np
from service.engine import memory_limit
from service.images import cost, formats
from service.images.decode import MAX_PIXELS, decode
from service.images.drawing import Drawing
from service.images.fit import Geometry

formats.accept_all()
memory_limit.return_freed_memory()  # as the service does; otherwise freed blocks count, too

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


@pytest.mark.contract("5.6")
def test_no_image_needs_more_memory_than_estimated(tmp_path):
    formats.accept_all()  # registers the encoder of HEIC
    calls = ("decode", "decode without antialiasing", "draw as PNG", "draw as JPEG")
    found = faults(tmp_path, "now", files(SIDE), calls)
    assert not found, "\n".join(found)


@pytest.mark.contract("2.5")
def test_no_image_that_an_engine_will_resize_needs_more_memory_than_estimated(tmp_path):
    """The images have 2200 x 2200 pixels, fewer than four for each pixel of the canvas."""
    rgb = noise("RGB", SIDE, SIDE)
    made = {
        "png L": saved(noise("L", SIDE, SIDE), "PNG", compress_level=1),
        "png": saved(rgb, "PNG", compress_level=1),
        "png turned": saved(rgb, "PNG", compress_level=1, exif=turned()),
        "jpeg turned": saved(rgb, "JPEG", exif=turned()),
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
    photograph = encode(squares("RGB", 4000, 3000), "JPEG", quality=85)
    assert priced(photograph).light  # the codec reduces it to 500 x 375
    assert priced(encode(squares("RGBA", 1920, 1080), compress_level=1)).light
    # 4000 x 3000 pixels of four bytes are 46 MiB
    assert priced(encode(Image.new("RGB", (4000, 3000)))).memory > 45 * MIB > LIGHT_BYTES


def test_a_progressive_jpeg_keeps_all_its_coefficients(encode):
    # 2 bytes x 3 samples per pixel without subsampling, 2 x 1.5 with 4:2:0
    image, pixels = squares("RGB", 2000, 1600), 3_200_000
    full, subsampled = (
        priced(encode(image, "JPEG", progressive=True, subsampling=subsampling)).memory for subsampling in (0, 2)
    )
    assert full - subsampled == pytest.approx((6 - 3) * pixels, abs=200_000)
    assert subsampled > 3 * pixels


def test_a_thumbnail_in_a_photograph_does_not_count_as_a_scan(encode):
    exif = Image.Exif()
    exif[0x9286] = encode(squares("RGB", 160, 120), "JPEG")  # a whole JPEG within the EXIF data
    image = squares("RGB", 1000, 800)
    plain, with_thumbnail = encode(image, "JPEG"), encode(image, "JPEG", exif=exif)
    assert with_thumbnail.count(b"\xff\xda") == 2
    more = len(with_thumbnail) - len(plain)
    assert priced(with_thumbnail).memory - priced(plain).memory == more * (1 + METADATA_COPIES)


def test_compressed_text_in_a_png_is_limited(encode):
    """20 kB of a file must not become 20 MB of text."""
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(2**20 - 1))
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    data = encode(squares("L", 40, 30))
    start = data.index(b"IDAT") - 4
    with pytest.raises(ValueError, match="PNG data is broken"):
        decode(data[:start] + 20 * chunk + data[start:], GEOMETRY)
    assert decode(data[:start] + chunk + data[start:], GEOMETRY).width == 40
