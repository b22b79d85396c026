"""A confusion matrix as a picture, for trackers.

W&B's own panel needs a `wandb.Table`, which contacts the server inside `log()`: a hanging server would block training.
"""

from collections.abc import Sequence

import numpy as np

READABLE = 12
"""With at most this many classes, the cells show their fraction as a number."""


def confusion_picture(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Shade each cell by its fraction of the row's (true class's) pixels; uint8 (height, width, 3).

    Args:
        matrix: integers (K, K); rows are the truth, columns the prediction.
        class_names: K names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3 + 0.5 * min(len(class_names), 2 * READABLE)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    axes.set(xlabel="prediction", ylabel="truth", title="fraction of the true class's pixels")
    if len(class_names) <= READABLE:
        axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
        axes.set_yticks(range(len(class_names)), class_names)
        for (row, column), share in np.ndenumerate(shares):
            color = "black" if share > 0.5 else "white"
            axes.text(column, row, f"{share:.3f}", ha="center", va="center", color=color, fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
