"""Which files get a warning, and that a warning changes no pixel."""

import io
import os
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.http.schemas import ImageWarning
from service.images import integrity
from service.images.decode import MAX_PIXELS, ImageError, damage, decode
from service.images.fit import Geometry

REAL = Path(os.environ.get("REAL_DATA_DIR", ""))
real = pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR is not set")
END = b"\xff\xd9"  # the marker at the end of a JPEG


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Large shapes with noise, so that every block of a JPEG has many coefficients."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (-(-height // 20) + 1, -(-width // 20) + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth.astype(int) + rng.integers(-12, 12, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def warnings(data: bytes) -> tuple[str, ...] | str:
    """The warnings for a file, or "refused"."""
    try:
        return damage(data)
    except ImageError:
        return "refused"


def test_the_schema_lists_all_warnings() -> None:
    assert set(get_args(ImageWarning.model_fields["reason"].annotation)) == set(integrity.WARNINGS)


# --- JPEG ------------------------------------------------------------------------------------------------------------

OPTIONS = st.fixed_dictionaries(
    {
        "quality": st.integers(20, 97),
        "progressive": st.booleans(),
        "optimize": st.booleans(),
        "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
        "restart_marker_blocks": st.sampled_from([0, 0, 1, 7]),
        "keep_rgb": st.booleans(),
    }
)
MODES = st.sampled_from(["RGB", "RGB", "L", "CMYK"])


@st.composite
def jpegs(draw: st.DrawFn) -> bytes:
    width, height = draw(st.integers(60, 160)), draw(st.integers(60, 160))
    mode, options = draw(MODES), draw(OPTIONS)
    if mode != "RGB":
        options.pop("keep_rgb")
    if mode == "CMYK" or options.get("keep_rgb"):
        options["subsampling"] = "4:4:4"
    return encoded(photo(width, height, mode, draw(st.integers(0, 9))), **options)


def pixels_of_pillow(data: bytes, scale: int) -> np.ndarray | None:
    """What Pillow alone decodes at 1/scale of the size; None if it refuses the file."""
    try:
        image = Image.open(io.BytesIO(data))
        image.draft(None, (-(-image.width // scale), -(-image.height // scale)))
        image.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return np.asarray(image)


def pixels(data: bytes, scale: int) -> np.ndarray | None:
    """The same through `integrity.load`."""
    try:
        image = Image.open(io.BytesIO(data))
        image.draft(None, (-(-image.width // scale), -(-image.height // scale)))
        return np.asarray(integrity.load(image, data)[0])
    except (OSError, SyntaxError, ValueError):
        return None


@settings(max_examples=60, deadline=None)
@given(jpegs(), st.sampled_from([1, 2, 4, 8]))
def test_a_whole_jpeg_has_no_warning_and_the_pixels_of_pillow(data: bytes, scale: int) -> None:
    assert damage(data) == ()
    np.testing.assert_array_equal(pixels(data, scale), pixels_of_pillow(data, scale))


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (7, 7), (8, 8), (9, 2), (1000, 3)])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_tiny_jpeg_has_the_pixels_of_pillow_too(size: tuple[int, int], scale: int) -> None:
    # libjpeg can scale by n/8, and for 7 pixels 7/8 and 8/8 give the same size
    data = encoded(photo(*size))
    assert damage(data) == ()
    np.testing.assert_array_equal(pixels(data, scale), pixels_of_pillow(data, scale))


def first_scan(data: bytes) -> int:
    """The place of the entropy-coded data of the first scan."""
    header = data.index(b"\xff\xda")
    return header + 2 + int.from_bytes(data[header + 2 : header + 4], "big")


@settings(max_examples=60, deadline=None)
@given(jpegs(), st.data())
def test_a_jpeg_cut_anywhere_with_its_end_marker_put_back_has_a_warning(data: bytes, draw: st.DataObject) -> None:
    # The last byte may hold only padding, and the two before it may be the restart marker of nothing.
    place = draw.draw(st.integers(first_scan(data), len(data) - len(END) - 4))
    assert warnings(data[:place] + END)


@pytest.mark.parametrize("subsampling", ["4:2:2", "4:2:0"])
def test_a_jpeg_of_unusual_subsampling_that_was_cut_has_a_warning(subsampling: str) -> None:
    # Pillow writes cyan with more samples than the other three colours, which TurboJPEG cannot read
    data = encoded(photo(160, 120, "CMYK"), subsampling=subsampling)
    assert damage(data) == ()
    for place in range(first_scan(data), len(data) - len(data) // 8, 100):
        assert warnings(data[:place] + END) == ("damaged_data",)


def segment(marker: int, contents: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(contents)) + contents


def lossless_jpeg(width: int, height: int) -> bytes:
    """A lossless JPEG of one grey. Its only Huffman code is a zero bit: no difference from the pixel before."""
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    scan = bytes([3, 1, 0, 2, 0, 3, 0]) + bytes([1, 0, 0])
    tables = bytes([0]) + bytes([1] + [0] * 15) + bytes([0])
    head = b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, tables) + segment(0xDA, scan)
    return head + bytes(width * height * 3 // 8) + END


def test_a_lossless_jpeg_is_never_given_to_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    # which would end the process: it writes the whole image into a buffer for an eighth of it
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    data = lossless_jpeg(800, 800)
    np.testing.assert_array_equal(pixels(data, 1), np.full((800, 800, 3), 128))
    assert damage(data) == damage(data[:-1000] + END) == ()  # its data cannot be judged
    with pytest.raises(ImageError):  # by Pillow, which does not scale it
        decode(data, Geometry(((64, 64),), 64, 64))
    hidden = segment(0xE0, lossless_jpeg(8, 8)) + segment(0xC0, b"")  # a frame header that is too short to be one
    warnings(data[:2] + hidden + data[2:])


def test_a_second_frame_header_does_not_change_the_size_that_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow believes the last one, libjpeg refuses the second
    data = encoded(photo(64, 48))
    frame = data.index(b"\xff\xc0")
    large = data[frame : frame + 5] + struct.pack(">HH", 60_000, 60_000) + data[frame + 9 : frame + 19]
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    assert warnings(data[:frame] + large + data[frame:]) == "refused"


@settings(max_examples=40, deadline=None)
@given(jpegs(), st.data())
def test_damage_never_changes_which_files_are_decoded_or_their_pixels(data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(2, len(data) - 1))
    put = draw.draw(st.binary(max_size=8))
    removed = draw.draw(st.integers(0, 8))
    damaged = data[:place] + put + data[place + removed :]
    for scale in (1, 4):
        expected, found = pixels_of_pillow(damaged, scale), pixels(damaged, scale)
        assert (expected is None) == (found is None)
        if expected is not None:
            np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["RGB", "L"]), st.integers(16, 800), st.data())
def test_zeros_in_the_middle_of_a_jpeg_are_noticed(mode: str, count: int, draw: st.DataObject) -> None:
    data = encoded(photo(160, 120, mode), quality=90)
    place = draw.draw(st.integers(first_scan(data), len(data) - len(END) - count))
    assert warnings(data[:place] + bytes(count) + data[place + count :]) in [("damaged_data",), "refused"]


def test_zeros_that_stand_for_an_area_of_one_colour_are_not_damage() -> None:
    # With its own Huffman tables, a blank image needs two zero bits a block: 64 x 128 blocks x 2 bits = 2048 bytes
    data = encoded(Image.new("L", (512, 1024), 90), optimize=True)
    assert bytes(1000) in data
    assert damage(data) == ()


@pytest.mark.parametrize("progressive", [False, True])
def test_missing_repeated_and_lost_restart_intervals_are_noticed(progressive: bool) -> None:
    data = encoded(photo(160, 120), progressive=progressive, restart_marker_blocks=2)
    markers = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    first, second, ninth = markers[0], markers[1], markers[8]
    assert warnings(data[:first] + data[first + 2 :])  # without the marker
    assert warnings(data[:first] + data[first : first + 2] + data[first:])  # the marker twice
    assert warnings(data[:first] + data[second:])  # one interval lost
    assert warnings(data[:first] + data[ninth:])  # eight intervals lost, after which the numbers of the markers fit


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_progressive_jpeg_that_ends_between_two_scans_has_missing_scans(mode: str) -> None:
    data = encoded(photo(160, 120, mode), progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    assert len(scans) > 4
    for place in scans[1:]:
        assert "missing_scans" in damage(data[:place] + END)


def test_a_sequential_jpeg_without_the_scan_of_a_colour_has_missing_scans() -> None:
    # one scan for each component, as jpegtran -scans can write it; each would be whole without the others
    frame = struct.pack(">BHHB", 8, 16, 16, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    scans = [b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, component, 0, 0, 63, 0) + b"\0" for component in (1, 2, 3)]
    head = b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame
    assert not integrity.scans_are_missing(head + b"".join(scans) + END)
    for missing in range(3):
        assert integrity.scans_are_missing(head + b"".join(scans[:missing] + scans[missing + 1 :]) + END)


def test_what_does_not_concern_the_pixels_of_a_jpeg_is_not_damage() -> None:
    image = photo(160, 120)
    data = encoded(image)
    assert damage(data + b"anything" * 1000) == ()
    assert damage(data + data) == ()
    assert damage(encoded(image, "MPO", save_all=True, append_images=[photo(80, 60)])) == ()
    tables = data.index(b"\xff\xdb")
    assert damage(data[:tables] + b"\0\0\0" + data[tables:]) == ()  # stray bytes between segments
    assert data[6:13] == b"JFIF\0\x01\x01"
    assert damage(data[:11] + b"\x03" + data[12:]) == ()  # version 3 of JFIF does not exist


def test_the_damage_of_a_jpeg_with_odd_metadata_is_noticed() -> None:
    # libjpeg's warning about the version must not hide the one about the data
    data = encoded(photo(160, 120))
    data = data[:11] + b"\x03" + data[12:]
    assert damage(data[: len(data) // 2] + END) == ("damaged_data",)


@real
def test_good_photographs_have_no_warnings() -> None:
    files = sorted([*REAL.glob("coco_cc/images/*.jpg"), *REAL.glob("bccd/JPEGImages/*"), *REAL.glob("cards/*/*.jpg")])
    assert len(files) > 100
    for file in files[::5]:
        assert damage(file.read_bytes()) == (), file


@real
def test_unusual_but_valid_files_have_no_warnings() -> None:
    rows = [line.split(",") for line in (REAL / "abuse" / "index.csv").read_text().splitlines()]
    valid = [REAL / "abuse" / row[0] for row in rows if row[1] == "valid-odd"]
    assert len(valid) > 80
    usual = [(), ("further_pages",), "refused"]  # some are animations
    warned = {file.name: found for file in valid if (found := warnings(file.read_bytes())) not in usual}
    # three bytes before the end marker that stand for nothing: the same as in a file whose blocks were lost
    assert warned == {"reftest__images__extraneous-data.jpg": ("damaged_data",)}


# --- PNG -------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 40, 30


def chunk(name: bytes, contents: bytes, wrong: bool = False) -> bytes:
    crc = zlib.crc32(name + contents) ^ wrong
    return struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", crc)


def rows(seed: int = 0) -> bytes:
    """The filtered rows of a WIDTH x HEIGHT RGB image: a filter byte of 0, then random samples."""
    samples = np.random.default_rng(seed).integers(1, 255, (HEIGHT, 1 + 3 * WIDTH), dtype=np.uint8)
    samples[:, 0] = 0
    return samples.tobytes()


def png(pixel_data: bytes, *, before: bytes = b"", after: bytes = b"", wrong: bytes = b"", end: bool = True) -> bytes:
    """An RGB file. before, after: chunks around IDAT; wrong: the name of the chunk whose checksum does not match."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
    last = chunk(b"IEND", b"", wrong == b"IEND") if end else b""
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixel_data, wrong == b"IDAT") + after + last


def test_a_whole_png_has_no_warning() -> None:
    data = zlib.compress(rows())
    assert damage(png(data)) == ()
    assert damage(png(data, before=chunk(b"tEXt", b"a\0b"), after=chunk(b"tIME", bytes(7)))) == ()
    assert damage(png(data) + b"anything" * 100) == ()
    assert damage(png(zlib.compress(rows() + rows()))) == ()  # rows that no pixel depends on
    assert damage(png(data + b"anything")) == ()  # bytes after the compressed rows


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 30)])
def test_a_black_or_transparent_png_is_not_missing_rows(mode: str, size: tuple[int, int]) -> None:
    assert damage(encoded(Image.new(mode, size, 0), "PNG")) == ()


@pytest.mark.parametrize("name", [b"IDAT", b"IEND"])
def test_a_wrong_checksum_is_noticed(name: bytes) -> None:
    assert damage(png(zlib.compress(rows()), wrong=name)) == ("wrong_checksum",)


def test_a_wrong_checksum_of_the_orientation_is_noticed_and_that_of_a_text_is_not() -> None:
    data = zlib.compress(rows())
    assert damage(png(data, after=chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", wrong=True))) == ("wrong_checksum",)
    assert damage(png(data, after=chunk(b"tEXt", b"a\0b", wrong=True))) == ()


@pytest.mark.parametrize("kept", [0, 1, HEIGHT // 2, HEIGHT - 1])
def test_a_png_without_its_last_rows_is_noticed(kept: int) -> None:
    data = png(zlib.compress(rows()[: kept * (1 + 3 * WIDTH)]))
    assert warnings(data) in [("missing_rows",), "refused"]
    if kept:
        canvas = decode(data, Geometry(((HEIGHT, WIDTH),), HEIGHT, WIDTH))
        assert canvas.warnings == ("missing_rows",)
        assert canvas.pixels[:kept].all()
        assert not canvas.pixels[kept:].any()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_png_with_a_changed_byte_or_a_cut_has_the_same_pixels_or_is_noticed(draw: st.DataObject) -> None:
    whole = png(zlib.compress(rows()))
    start, end = whole.index(b"IDAT") - 4, len(whole)
    place = draw.draw(st.integers(start, end - 1))
    if draw.draw(st.booleans()):
        data = whole[:place]
    else:
        data = whole[:place] + bytes([whole[place] ^ draw.draw(st.integers(1, 255))]) + whole[place + 1 :]
    found = warnings(data)
    if found == ():
        np.testing.assert_array_equal(pixels(data, 1), pixels(whole, 1))


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (8, 0), (16, 0), (8, 2), (4, 3), (8, 4), (16, 6)])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (8, 8), (33, 17)])
def test_the_size_of_interlaced_rows_is_that_of_its_seven_passes(
    depth: int, colour: int, size: tuple[int, int]
) -> None:
    # each pass is an image of its own, with whole bytes in each row (section 8.1)
    width, height = size
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    grids = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = [(len(range(x, width, across)), len(range(y, height, down))) for x, y, across, down in grids]
    expected = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in passes if columns)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 1))
    palette = chunk(b"PLTE", bytes(3 * 16)) if colour == 3 else b""
    head = b"\x89PNG\r\n\x1a\n" + header + palette
    data = head + chunk(b"IDAT", zlib.compress(bytes(expected))) + chunk(b"IEND", b"")
    assert damage(data) == ()
    short = head + chunk(b"IDAT", zlib.compress(bytes(expected - 1))) + chunk(b"IEND", b"")
    assert warnings(short) in [("missing_rows",), "refused"]


def test_rows_that_no_pixel_needs_are_not_inflated() -> None:
    compressor = zlib.compressobj()
    data = png(b"".join([*(compressor.compress(bytes(1 << 20)) for _ in range(64)), compressor.flush()]))
    tracemalloc.start()
    try:
        assert damage(data) == ()  # its last row is black, so the rows are counted
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # bytes, of 64 MB
    finally:
        tracemalloc.stop()


def test_a_png_without_its_end_has_a_warning() -> None:
    data = zlib.compress(rows())
    assert damage(png(data, end=False)) == ("missing_end",)
    assert damage(png(data)[:-1]) == ("missing_end",)


@real
def test_corrupt_pngs_of_the_test_suites_are_noticed() -> None:
    for name in ("image-png/pngsuite__xcsn0g01.png", "image-png/bugfixes__x_interlaced_chck.png"):
        assert damage((REAL / "abuse" / name).read_bytes()) == ("wrong_checksum",)


# --- other formats ---------------------------------------------------------------------------------------------------


def bmp_with_palette(index: int) -> bytes:
    """One row of four pixels with this index, and a palette of two colours."""
    header = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 0, 4, 0, 0, 2, 0)
    return (
        b"BM" + struct.pack("<IHHI", 66, 0, 0, 62) + header + bytes([9, 20, 30, 0, 40, 50, 60, 0]) + bytes([index] * 4)
    )


def test_a_colour_beyond_the_end_of_the_palette_is_noticed() -> None:
    assert damage(bmp_with_palette(1)) == ()
    assert damage(bmp_with_palette(2)) == ("unknown_colours",)
    pal = chunk(b"PLTE", bytes(range(6)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 3, 0, 0, 0))
    for index, expected in ((1, ()), (2, ("unknown_colours",))):
        data = chunk(b"IDAT", zlib.compress(bytes([0] + [index] * 4)))
        assert damage(b"\x89PNG\r\n\x1a\n" + header + pal + data + chunk(b"IEND", b"")) == expected


@pytest.mark.parametrize("format", ["WEBP", "BMP", "GIF"])
def test_other_files_are_refused_if_they_are_cut_and_have_no_warning_if_they_are_whole(format: str) -> None:
    data = encoded(photo(80, 60), format)
    assert damage(data) == ()
    assert damage(data + b"anything" * 100) == ()
    for kept in (len(data) // 4, len(data) // 2, len(data) - 8):
        assert warnings(data[:kept]) == "refused"


def test_a_webp_that_names_more_bytes_than_it_has_is_refused() -> None:
    data = encoded(photo(80, 60), "WEBP")
    assert warnings(data[:4] + struct.pack("<I", len(data) + 1000) + data[8:]) == "refused"


def test_a_gif_without_its_trailer_has_no_warning_because_its_first_frame_is_whole() -> None:
    data = encoded(photo(80, 60), "GIF")
    assert data.endswith(b"\0;")
    assert damage(data[:-1]) == ()


def test_a_gif_whose_codes_end_early_is_refused() -> None:
    # codes of 3 bits, the lowest bits first: clear, 1, 1, end
    codes = (0b101_001_001_100).to_bytes(2, "little")
    data = gif(screen=(4, 4), frame=(0, 0, 4, 4), codes=codes)
    assert warnings(data) == "refused"


def gif(
    screen: tuple[int, int], frame: tuple[int, int, int, int], codes: bytes, transparent: int | None = None
) -> bytes:
    """A GIF with the palette (10, 20, 30), (200, 100, 50).  frame: x, y, width, height;  codes: of three bits each."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes([10, 20, 30, 200, 100, 50])
    control = b"" if transparent is None else b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    return head + control + b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02" + bytes([len(codes)]) + codes + b"\0;"


def filled(pixels: int, index: int) -> bytes:
    """The codes of an area of one palette index. A clear code (4) before every second pixel keeps them at 3 bits."""
    codes = [code for _ in range(pixels // 2) for code in (4, index, index)] + [5]
    return sum(code << (3 * place) for place, code in enumerate(codes)).to_bytes(-(-3 * len(codes) // 8), "little")


@pytest.mark.parametrize("transparent", [None, 0])
def test_a_gif_is_white_where_its_first_frame_draws_nothing(transparent: int | None) -> None:
    data = gif((6, 5), (1, 2, 4, 2), filled(8, 1), transparent)
    canvas = decode(data, Geometry(((5, 6),), 5, 6))
    expected = np.full((5, 6, 3), 255)
    expected[2:4, 1:5] = [200, 100, 50]
    np.testing.assert_array_equal(canvas.pixels, expected)
    assert canvas.warnings == ()


def test_a_transparent_frame_that_does_not_fill_its_screen_is_white_everywhere() -> None:
    canvas = decode(gif((6, 5), (1, 2, 4, 2), filled(8, 1), transparent=1), Geometry(((5, 6),), 5, 6))
    assert (canvas.pixels == 255).all()


def test_a_small_frame_that_is_broken_is_refused_and_its_screen_counts_for_the_limit() -> None:
    data = gif((6, 5), (1, 2, 4, 2), filled(8, 1)[:2])
    assert warnings(data) == "refused"
    with pytest.raises(ImageError, match=re.escape(f"{MAX_PIXELS:,}")):
        damage(gif((65_000, 65_000), (1, 2, 4, 2), filled(8, 1)))
