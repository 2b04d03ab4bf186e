"""The parser of JPEG heads and torchvision's decoder, against Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from greedynas_fast.data.jpeg import decode_plain, plain_size

ORIENTATION = 0x0112


def jpeg(mode: str = "RGB", size: tuple[int, int] = (37, 21), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def with_orientation(value: int, big_endian: bool = False) -> bytes:
    exif = Image.Exif()
    if big_endian:
        exif.endian = ">"
        exif[0x0100] = 1  # an entry before the one that counts
    exif[ORIENTATION] = value
    return jpeg(exif=exif)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 100, "dpi": (72, 72)}])
@pytest.mark.parametrize("size", [(37, 21), (1, 1), (3, 300)])
def test_plain_files(mode: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    assert plain_size(jpeg(mode, size, **options)) == size[::-1]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["RGB", "L"]),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.integers(1, 100),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.sampled_from([{}, {"optimize": True}, {"restart_marker_rows": 1}]),
)
def test_torchvision_gives_the_pixels_of_pillow(
    mode: str, size: tuple[int, int], quality: int, subsampling: int, progressive: bool, options: dict[str, Any]
) -> None:
    if mode == "RGB":
        options = {**options, "subsampling": subsampling}
    data = jpeg(mode, size, quality=quality, progressive=progressive, **options)
    pixels = decode_plain(data)
    assert pixels is not None
    np.testing.assert_array_equal(pixels.permute(1, 2, 0), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_what_torchvision_is_not_to_decode() -> None:
    assert decode_plain(jpeg("CMYK")) is None
    assert decode_plain(with_orientation(6)) is None
    assert decode_plain(jpeg()[:-2]) is None
    assert decode_plain(b"") is None
    # Plain by its head, and of more Huffman codes than there can be.
    data = bytearray(jpeg(optimize=True))
    table = data.index(b"\xff\xc4")
    data[table + 5 : table + 21] = b"\xff" * 16
    assert plain_size(bytes(data)) == (21, 37)
    assert decode_plain(bytes(data)) is None


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("value", range(1, 9))
def test_turned_files(value: int, big_endian: bool) -> None:
    data = with_orientation(value, big_endian)
    assert Image.open(io.BytesIO(data)).getexif()[ORIENTATION] == value
    assert plain_size(data) == ((21, 37) if value == 1 else None)


def test_other_exif_data_and_comments() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    assert plain_size(jpeg(exif=exif, comment=b"hello")) == (21, 37)


def test_orientation_in_xmp() -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = jpeg(xmp=packet)
    assert Image.open(io.BytesIO(data)).getexif()[ORIENTATION] == 6
    assert plain_size(data) is None
    assert plain_size(jpeg(xmp=packet.replace(b"Orientation", b"Something"))) == (21, 37)


def test_colours_that_are_not_ycbcr() -> None:
    assert plain_size(jpeg("CMYK")) is None
    # Pillow writes RGB without conversion, marked by Adobe's segment or by the names of the components.
    data = jpeg(keep_rgb=True)
    assert np.array_equal(np.array(Image.open(io.BytesIO(data)).convert("RGB")).shape, (21, 37, 3))
    assert plain_size(data) is None


def test_thumbnails_do_not_count() -> None:
    thumbnail = jpeg(size=(8, 6))
    data = jpeg()
    segment = b"\xff\xe2" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    assert plain_size(data[:2] + segment + data[2:]) == (21, 37)


def test_what_follows_the_end_does_not_count() -> None:
    assert plain_size(jpeg() + bytes(1000)) == (21, 37)
    assert plain_size(jpeg() + jpeg(size=(8, 6))) == (21, 37)  # pictures after the first


@pytest.mark.parametrize("progressive", [False, True])
def test_markers_within_the_pixels(progressive: bool) -> None:
    data = jpeg(size=(80, 60), progressive=progressive)
    middle = data.index(b"\xff\xda") + 30
    for marker, plain in ((0x1B, False), (0xD8, False), (0xC0, False), (0x00, True), (0xD3, True)):
        assert (plain_size(data[:middle] + bytes([0xFF, marker]) + data[middle:]) is not None) == plain, marker


@pytest.mark.parametrize("frame", [0xC3, 0xC9, 0xCA])
def test_frames_that_decoders_rarely_know(frame: int) -> None:
    assert plain_size(jpeg().replace(b"\xff\xc0", bytes([0xFF, frame]), 1)) is None


def test_other_files() -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 5)).save(file, "PNG")
    for data in (b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"a text", file.getvalue()):
        assert plain_size(data) is None


@pytest.mark.parametrize("progressive", [False, True])
def test_no_end_means_no_plain_file(progressive: bool) -> None:
    data = jpeg(progressive=progressive)
    assert [length for length in range(len(data) + 1) if plain_size(data[:length])] == [len(data)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_heads_raise_nothing(data: Any) -> None:
    damaged = bytearray(with_orientation(1))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    size = plain_size(bytes(damaged))
    assert size is None or min(size) > 0
