"""Outlines of pixel regions, as polygons on the grid between the pixels."""

from collections.abc import Callable

import numpy as np

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Right, down, left, up, as (x, y); the next entry is a right turn."""


def outlines(region: np.ndarray, column: int) -> list[np.ndarray]:
    """Outer outlines of a connected component; holes are filled.

    Follows the border with the component on the right, through corners where pixels touch. There the path meets itself
    and is split, so that each ring is a simple polygon.

    Args:
        region: bool (h, w), True inside; other components are ignored.
        column: of the leftmost pixel of the component in row 0.

    Returns:
        Closed rings of (x, y), int64 (n, 2), the last point equal to the first; corners only.
    """
    inside = np.pad(region, 1)

    def is_inside(x: int, y: int) -> bool:
        return bool(inside[y + 1, x + 1])

    x, y, heading = column, 0, 0
    start, path, place, rings = (x, y), [(x, y)], {(x, y): 0}, []
    while True:
        step = _STEPS[heading]
        x, y = x + step[0], y + step[1]
        if (x, y) in place:
            rings.append([*path[place[x, y] :], (x, y)])
            for point in path[place[x, y] + 1 :]:
                del place[point]
            del path[place[x, y] + 1 :]
            if (x, y) == start and _next_heading(is_inside, x, y, heading) == 0:
                break
        else:
            place[x, y] = len(path)
            path.append((x, y))
        heading = _next_heading(is_inside, x, y, heading)
    corners = [_corners(np.array(ring)) for ring in rings]
    # The component is on the right: rings around it turn right, rings around holes turn left.
    return [ring for ring in corners if _doubled_area(ring) > 0]


def _next_heading(is_inside: Callable[[int, int], bool], x: int, y: int, heading: int) -> int:
    """Left if the pixel ahead on the left is inside, straight ahead if only the right one is, else right."""
    ahead, right = _STEPS[heading], _STEPS[(heading + 1) % 4]
    # The pixels around grid point (x, y) have columns x - 1 and x, and rows y - 1 and y.
    of_left = ((ahead[0] - right[0] - 1) // 2, (ahead[1] - right[1] - 1) // 2)
    of_right = ((ahead[0] + right[0] - 1) // 2, (ahead[1] + right[1] - 1) // 2)
    if is_inside(x + of_left[0], y + of_left[1]):
        return (heading + 3) % 4
    if is_inside(x + of_right[0], y + of_right[1]):
        return heading
    return (heading + 1) % 4


def _corners(ring: np.ndarray) -> np.ndarray:
    """The ring without points on straight segments."""
    steps = np.diff(ring, axis=0)
    turns = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    kept = ring[:-1][turns]
    return np.concatenate([kept, kept[:1]])


def _doubled_area(ring: np.ndarray) -> int:
    x, y = ring.T
    return int((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())
