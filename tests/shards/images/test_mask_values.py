"""Masks are read by the values in the file, whatever their type and however a viewer shows them."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdist.core.errors import UserError
from shards.images.config import MasksConfig
from shards.images.masks import MaskReader
from shards.manifest import IGNORE

LABELS = np.random.default_rng(2).integers(0, 3, (19, 21)).astype(np.uint8)
BITS = LABELS > 0


def read(path: Path, *classes: str, **settings: object) -> np.ndarray:
    return MaskReader(MasksConfig(classes=classes, **settings)).read(path)  # type: ignore[arg-type]


def png_of_few_bits(values: np.ndarray, bits: int) -> bytes:
    """A gray PNG of 1, 2 or 4 bits, which Pillow doesn't write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    in_bits = np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(len(values), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(in_bits, axis=1))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def save_tiff_of_few_bits(path: Path, values: np.ndarray, bits: int, photometric: str) -> None:
    """Write packed values: tifffile writes them only as bytes, so its tags are corrected."""
    in_bits = np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(len(values), -1)
    tifffile.imwrite(path, np.packbits(in_bits, axis=1), photometric=photometric, metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[256].overwrite(values.shape[1])
        file.pages[0].tags[258].overwrite(bits)


def save_bits(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind == "boolean.tif":
        tifffile.imwrite(path, BITS)
    elif kind == "inverting.tif":
        tifffile.imwrite(path, BITS, photometric="miniswhite")
    elif kind == "black_is_zero.tif":
        tifffile.imwrite(path, BITS, photometric="minisblack")
    elif kind == "group4.tif":
        Image.fromarray(BITS).save(path, compression="group4")
    elif kind == "palette.png":
        palette = Image.fromarray(BITS.astype(np.uint8))
        palette.putpalette([0, 0, 0, 255, 255, 255])
        palette.save(path, bits=1)
    elif kind == "plain.pbm":
        rows = "\n".join(" ".join(str(int(bit)) for bit in row) for row in BITS)
        path.write_text(f"P1\n# a comment\n{BITS.shape[1]} {BITS.shape[0]}\n{rows}\n")
    elif kind == "raw.pbm":
        path.write_bytes(b"P4\n%d %d\n" % BITS.shape[::-1] + np.packbits(BITS, axis=1).tobytes())
    else:
        Image.fromarray(BITS).save(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "boolean.tif",
        "inverting.tif",
        "black_is_zero.tif",
        "group4.tif",
        "bits.png",
        "palette.png",
        "bits.bmp",
        "plain.pbm",
        "raw.pbm",
    ],
)
def test_in_one_bit_masks_1_is_read_as_1_or_255_depending_on_the_classes(tmp_path: Path, kind: str) -> None:
    path = save_bits(tmp_path, kind)
    for classes in (
        ("background", "cell"),
        ("background=0", "cell=255"),
        ("background=0-127", "cell=128-255"),
        ("background", "cell=1-"),
    ):
        assert np.array_equal(read(path, *classes), BITS), classes
    assert np.array_equal(read(path, "cell=255", "background=0"), ~BITS)
    assert np.array_equal(read(path, "background=0", "cell=255", unknown="nearest"), BITS)
    assert np.array_equal(read(path, "background=0", "cell=1", ignore=("255",)), BITS)
    assert np.array_equal(read(path, "background=#000000", "cell=#ffffff"), BITS)


@pytest.mark.parametrize("options", [{"photometric": "miniswhite"}, {"photometric": "miniswhite", "tile": (16, 16)}])
def test_an_inverting_lookup_table_changes_no_label(tmp_path: Path, options: dict[str, object]) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", LABELS, compression="zlib", **options)
    assert np.array_equal(read(tmp_path / "labels.tif", "a", "b", "c"), LABELS)
    tifffile.imwrite(tmp_path / "binary.tif", BITS.astype(np.uint8) * 255, **options)
    assert np.array_equal(read(tmp_path / "binary.tif", "background=0", "cell=255"), BITS)
    tifffile.imwrite(tmp_path / "deep.tif", LABELS.astype(np.uint16) * 1000, **options)
    assert np.array_equal(read(tmp_path / "deep.tif", "a=0", "b=1000", "c=2000"), LABELS)


@pytest.mark.parametrize("bits", [2, 4])
def test_values_of_few_bits_are_not_scaled(tmp_path: Path, bits: int) -> None:
    (tmp_path / "m.png").write_bytes(png_of_few_bits(LABELS, bits))
    assert np.array_equal(read(tmp_path / "m.png", "a", "b", "c"), LABELS)
    for photometric in ("minisblack", "miniswhite"):
        path = tmp_path / f"{photometric}.tif"
        save_tiff_of_few_bits(path, LABELS, bits, photometric)
        assert np.array_equal(read(path, "a", "b", "c"), LABELS)
    (tmp_path / "m.pgm").write_bytes(b"P5\n21 19\n%d\n" % (2**bits - 1) + LABELS.tobytes())
    assert np.array_equal(read(tmp_path / "m.pgm", "a", "b", "c"), LABELS)
    palette = Image.fromarray(LABELS)
    palette.putpalette([9, 9, 9, 0, 0, 0, 200, 0, 0])
    palette.save(tmp_path / "palette.png", bits=bits)
    assert np.array_equal(read(tmp_path / "palette.png", "a", "b", "c"), LABELS)


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=["plain", "zlib", "tiles"])
def test_labels_of_any_type_are_read(tmp_path: Path, dtype: str, options: dict[str, object]) -> None:
    tifffile.imwrite(tmp_path / "m.tif", LABELS.astype(dtype), **options)
    assert np.array_equal(read(tmp_path / "m.tif", "a", "b", "c"), LABELS)


def test_complex_numbers_are_refused_without_advice_to_scale_labels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", LABELS.astype(np.complex64))
    with pytest.raises(UserError, match=r"masks hold whole numbers$"):
        read(tmp_path / "m.tif", "a", "b", "c")


def test_labels_of_32_bits_are_read_in_other_formats(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "m.zarr"), data=LABELS.astype(np.int32))
    assert np.array_equal(read(tmp_path / "m.zarr", "a", "b", "c"), LABELS)
    (tmp_path / "m.pgm").write_bytes(b"P5 21 19 70\n" + LABELS.tobytes())
    assert np.array_equal(read(tmp_path / "m.pgm", "a", "b", "c"), LABELS)
    deep = (LABELS.astype(np.uint16) * 300).astype(">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5 21 19 600\n" + deep.tobytes())
    assert np.array_equal(read(tmp_path / "deep.pgm", "a=0", "b=300", "c=600"), LABELS)


def test_an_open_range_makes_instance_numbers_one_class(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 255, 65535, 65536, 2_000_000_000]], np.uint32)
    tifffile.imwrite(tmp_path / "m.tif", numbers)
    assert read(tmp_path / "m.tif", "background", "cell=1-").tolist() == [[0, 1, 1, 1, 1, 1]]
    assert read(tmp_path / "m.tif", "background", "few=1-65535", "many=65536-").tolist() == [[0, 1, 1, 1, 2, 2]]
    with pytest.raises(UserError, match=r"65536 \(1 px\), 2000000000 \(1 px\)"):
        read(tmp_path / "m.tif", "background", "cell=1-65535")
    with pytest.raises(UserError, match="'few' and 'many'"):
        read(tmp_path / "m.tif", "background", "few=1-100", "many=100-")


def test_values_that_are_not_labels_are_named_without_advice_to_scale_them(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", np.array([[0, 1, -1, 0.5, np.nan]], np.float32))
    with pytest.raises(UserError) as error:
        read(tmp_path / "m.tif", "a", "b")
    assert all(text in str(error.value) for text in ("-1 (1 px)", "0.5 (1 px)", "nan (1 px)"))
    assert "cale" not in str(error.value)
    assert read(tmp_path / "m.tif", "a", "b", unknown="ignore").tolist() == [[0, 1, IGNORE, IGNORE, IGNORE]]
    assert read(tmp_path / "m.tif", "a", "b", unknown="nearest").tolist() == [[0, 1, 0, 0, IGNORE]]
    tifffile.imwrite(tmp_path / "i.tif", np.array([[0, 1, -1]], np.int16))
    assert read(tmp_path / "i.tif", "a", "b", ignore=("-1",)).tolist() == [[0, 1, IGNORE]]


def test_every_window_is_checked_for_colors(tmp_path: Path) -> None:
    mask = np.zeros((700, 8, 3), np.uint8)
    mask[600:620] = (255, 0, 0)
    Image.fromarray(mask).save(tmp_path / "m.png")
    tifffile.imwrite(tmp_path / "m.tif", mask, photometric="rgb", rowsperstrip=16)
    for name in ("m.png", "m.tif"):
        with MaskReader(MasksConfig(classes=("a", "b"))).open(tmp_path / name) as file:
            assert not file.read(0, 600).any()
            with pytest.raises(UserError, match=r"colored \(#000000, #ff0000\)"):
                file.read(580, 640)
    by_color = read(tmp_path / "m.png", "a=#000000", "b=#ff0000")
    assert np.array_equal(by_color, mask[..., 0] // 255)


@pytest.mark.parametrize("kind", ["rgba.png", "la.png", "rgba.tif", "rgba.webp"])
def test_a_mask_stored_only_in_the_alpha_channel_is_refused_with_what_was_seen(tmp_path: Path, kind: str) -> None:
    alpha = LABELS * np.uint8(100)
    flat = np.full((*LABELS.shape, 1 if kind == "la.png" else 3), 7, np.uint8)
    pixels = np.concatenate([flat, alpha[..., None]], axis=2)
    if kind.endswith("tif"):
        tifffile.imwrite(tmp_path / kind, pixels, photometric="rgb", extrasamples=["unassalpha"])
    else:
        Image.fromarray(pixels).save(tmp_path / kind, **({"lossless": True, "exact": True} if "webp" in kind else {}))
    with pytest.raises(UserError, match=rf"{kind}: all pixels have the same value \(7.*alpha.* from 0 to 200"):
        read(tmp_path / kind, "a=0", "b=7")


def test_transparency_next_to_labels_is_ignored_silently(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([LABELS, LABELS, LABELS, 255 - LABELS])).save(tmp_path / "m.png")
    assert np.array_equal(read(tmp_path / "m.png", "a", "b", "c"), LABELS)
    same = np.zeros((*LABELS.shape, 4), np.uint8)
    same[..., 3] = 255
    Image.fromarray(same).save(tmp_path / "empty.png")
    assert not read(tmp_path / "empty.png", "a", "b").any()
