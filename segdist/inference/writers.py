"""Writes layers as PNG, TIFF, Zarr or npy files, band by band and atomically."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segdist.core.files import whole_file
from segdist.core.json_values import JsonObject, Keywords
from segdist.inference.palette_png import write_palette_png
from segdist.inference.parts import ROWS_AT_ONCE, Rows, blocks
from shards.images.zarr_image import import_zarr
from shards.manifest import ClassInfo


def write_mask_png(path: Path, mask: Rows, classes: Sequence[ClassInfo]) -> None:
    """Write a palette PNG in the classes' colors, band by band."""
    with whole_file(path) as file:
        write_palette_png(file, mask.shape, blocks(mask), (info.color for info in classes))


def write_gray_png(path: Path, layer: Rows) -> None:
    """Write an 8-bit grayscale PNG."""
    with whole_file(path) as file:
        Image.fromarray(np.concatenate(list(blocks(layer)))).save(file, "PNG")


def write_tiff(path: Path, layers: Sequence[Rows], classes: Sequence[ClassInfo] | None = None) -> None:
    """Write a tiled, deflate-compressed TIFF, one page per layer; with `classes`, a palette image in their colors."""
    import tifffile  # takes a tenth of a second, which PNG jobs don't need

    height, width = layers[0].shape
    options: Keywords = {"photometric": "minisblack"}
    if classes is not None:
        colormap = np.zeros((3, 256), np.uint16)
        colormap[:, : len(classes)] = np.array([info.color for info in classes], np.uint16).T * 257
        options = {"photometric": "palette", "colormap": colormap}
    size = sum(layer.dtype.itemsize * height * width for layer in layers)
    with whole_file(path) as file, tifffile.TiffWriter(file, bigtiff=size > 2**31) as tiff:
        for layer in layers:
            tiff.write(
                _tiles(layer),
                shape=(height, width),
                dtype=layer.dtype,
                tile=(ROWS_AT_ONCE, ROWS_AT_ONCE),
                compression="zlib",
                metadata=None,
                **options,
            )


def _tiles(layer: Rows) -> Iterator[np.ndarray]:
    for block in blocks(layer):
        for left in range(0, layer.shape[1], ROWS_AT_ONCE):
            tile = np.zeros((ROWS_AT_ONCE, ROWS_AT_ONCE), layer.dtype)
            part = block[:, left : left + ROWS_AT_ONCE]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def write_npy(path: Path, layers: Sequence[Rows]) -> None:
    """Write one array (layer, height, width)."""
    with whole_file(path) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(layers[0].dtype),
            "fortran_order": False,
            "shape": (len(layers), *layers[0].shape),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for layer in layers:
            for block in blocks(layer):
                file.write(np.ascontiguousarray(block).data)


def write_zarr(path: Path, layers: Sequence[Rows], attributes: JsonObject, *, stacked: bool) -> None:
    """Write a Zarr array (height, width), or (layer, height, width) if `stacked`; the folder appears when complete."""
    zarr = import_zarr()
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    height, width = layers[0].shape
    lead = (len(layers),) if stacked else ()
    array = zarr.create_array(
        str(temporary),
        shape=(*lead, height, width),
        chunks=(*(1 for _ in lead), min(ROWS_AT_ONCE, height), min(ROWS_AT_ONCE, width)),
        dtype=layers[0].dtype,
    )
    array.attrs.update(attributes)
    for index, layer in enumerate(layers):
        for number, block in enumerate(blocks(layer)):
            top = number * ROWS_AT_ONCE
            where = (slice(top, top + len(block)), slice(None))
            array[(index, *where) if stacked else where] = block
    shutil.rmtree(path, ignore_errors=True)
    temporary.replace(path)
