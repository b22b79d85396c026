"""Records as tar members match the standard tools byte for byte."""

import io
import tarfile

import numpy as np
import pytest

from shards.records import BLOCK, END, NpyLayout, decode_png, encode_png, padded, png_records


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("patch", [8, 33, 96])
def test_tarfile_and_numpy_read_npy_records(channels: int, dtype: str, patch: int) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, np.iinfo(dtype).max, (4, channels, patch, patch)).astype(dtype)
    masks = random.integers(0, 256, (4, patch, patch)).astype(np.uint8)
    layout = NpyLayout(patch, channels, dtype)
    rows = layout.pack(12, 345, images, masks)
    assert rows.shape == (4, layout.stride)
    with tarfile.open(fileobj=io.BytesIO(rows.tobytes() + END)) as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:2]] == ["000120000345.image.npy", "000120000345.mask.npy"]
        assert all(member.mtime == member.uid == member.gid == 0 for member in members)
        for number in range(4):
            for member, array in ((members[2 * number], images), (members[2 * number + 1], masks)):
                file = tar.extractfile(member)
                assert file is not None
                assert np.array_equal(np.load(io.BytesIO(file.read())), array[number])
    assert np.array_equal(layout.images(rows), images)
    assert np.array_equal(layout.masks(rows), masks)


def test_headers_match_tarfile() -> None:
    rows = NpyLayout(16, 1, "uint8").pack(0, 7, np.zeros((1, 1, 16, 16), np.uint8), np.zeros((1, 16, 16), np.uint8))
    info = tarfile.TarInfo("000000000007.image.npy")
    info.size = 128 + 256
    assert rows[0, :BLOCK].tobytes() == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("shape", "dtype"), [((1, 20, 20), "uint8"), ((3, 20, 20), "uint8"), ((1, 20, 20), "uint16")])
def test_png_keeps_every_pixel(shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    assert np.array_equal(decode_png(encode_png(array), 20).reshape(shape), array)


def test_png_records_are_at_their_stated_offsets() -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 1, 24, 24)).astype(np.uint8)
    masks = images[:, 0] % 3
    content, places = png_records(1, 0, images, masks)
    for number, (image_at, image_bytes, mask_at, mask_bytes) in enumerate(places.tolist()):
        assert np.array_equal(decode_png(content[image_at : image_at + image_bytes], 24), images[number, 0])
        assert np.array_equal(decode_png(content[mask_at : mask_at + mask_bytes], 24), masks[number])
    with tarfile.open(fileobj=io.BytesIO(content + END)) as tar:
        assert len(tar.getmembers()) == 6


def test_sizes_are_padded_to_blocks() -> None:
    assert [padded(size) for size in (0, 1, 512, 513)] == [0, 512, 512, 1024]
