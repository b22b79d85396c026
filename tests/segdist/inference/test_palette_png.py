"""Palette PNG masks: readers find what was written, and bands bound the memory."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segdist.inference.palette_png import write_palette_png
from segdist.inference.parts import ROWS_AT_ONCE, MemoryRows
from segdist.inference.writers import write_mask_png
from tests.support.inference_parts import CLASSES

COLORS = [(0, 0, 0), (230, 159, 0), (86, 180, 233)]


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 80))
@settings(deadline=None, max_examples=40)
def test_pillow_reads_what_was_written_in_bands_of_any_height(height: int, width: int, band: int) -> None:
    mask = np.random.default_rng(height).integers(0, 3, (height, width), dtype=np.uint8)
    file = io.BytesIO()
    bands = (mask[top : top + band] for top in range(0, height, band))
    write_palette_png(file, (height, width), bands, COLORS)
    file.seek(0)
    with Image.open(file) as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture) == mask).all()
        assert picture.getpalette() == [part for color in COLORS for part in color]


def test_every_chunk_has_its_checksum() -> None:
    file = io.BytesIO()
    write_palette_png(file, (9, 9), [np.arange(81, dtype=np.uint8).reshape(9, 9) % 3], COLORS)
    with Image.open(io.BytesIO(file.getvalue())) as picture:
        picture.verify()
    content = bytearray(file.getvalue())
    content[70] ^= 1  # among the pixels
    with pytest.raises((SyntaxError, OSError)), Image.open(io.BytesIO(content)) as picture:
        picture.verify()


def test_a_mask_of_any_height_is_read_in_bands(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (3 * ROWS_AT_ONCE + 7, 40), dtype=np.uint8)

    class Watched(MemoryRows):
        largest = 0

        def read(self, top: int, bottom: int) -> np.ndarray:
            self.largest = max(self.largest, bottom - top)
            return super().read(top, bottom)

    rows = Watched(mask)
    write_mask_png(tmp_path / "mask.png", rows, CLASSES)
    assert rows.largest == ROWS_AT_ONCE
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == mask).all()
