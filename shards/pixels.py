"""The type of arrays of pixels."""

from typing import Any

from numpy.typing import NDArray

Pixels = NDArray[Any]
"""The file or the set determines the dtype: uint8 or uint16; for masks also other integers, floats and bool."""
