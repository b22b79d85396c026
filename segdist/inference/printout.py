"""What an inference job prints: the plan before, the result after."""

from segdist.core.paths import FAILURES, SCORES
from segdist.inference.assignment import SMALLEST_CUT, Stretch, assign
from segdist.inference.evaluation import score_table
from segdist.inference.job import Result
from segdist.inference.outputs import FOLDERS
from segdist.inference.segment import MEMORY_LIMIT
from segdist.inference.task import ImageTask, Task

SHOWN_FAILURES = 5


def plan_text(task: Task, world_size: int) -> str:
    """Images, tiles, work per rank and memory, one per line."""
    stretches = [Stretch(image, image.tile_rows) for image in task.images]
    pieces = assign(stretches, world_size)
    pixels = sum(image.header.pixels for image in task.images)
    bad = task.unusable.values()
    lines = [
        "plan:",
        *(f"  model: {file}" for file in task.model_files),
        f"  images of {task.card.channels} channels, classes {', '.join(task.class_names)}",
        f"  input: {len(task.images) + len(bad)} images, {pixels / 1e6:.3f} megapixels"
        + (f", {len(bad)} of them can't be used" if bad else ""),
        f"  tiles: {sum(stretch.tiles for stretch in stretches):,} of {task.tile} x {task.tile} pixels, overlap "
        f"{task.config.overlap:.0%}, {task.config.blending}, batches of {task.config.batch_size}",
        f"  precision: {task.precision.name} ({task.precision.reason})",
        f"  output: {task.folder}",
    ]
    for rank, piece in enumerate(pieces):
        images = len({stretch.image for stretch in piece})
        memory = max((memory_of(task, stretch.image) for stretch in piece), default=0)
        lines.append(
            f"  rank {rank}: {images} images, {sum(stretch.tiles for stretch in piece):,} tiles, "
            f"{memory / 1e6:.0f} MB in addition to torch and the model"
        )
    if any(stretch.tiles >= SMALLEST_CUT for stretch in stretches) and world_size > 1:
        lines.append("  large images are split between ranks; tile rows at a seam are computed on both sides")
    lines += [f"  can't be used: {failure.error}" for failure in bad][:SHOWN_FAILURES]
    return "\n".join(lines)


def memory_of(task: Task, image: ImageTask) -> int:
    """Bytes needed to segment an image, without the model: row sums, image rows, a batch, decoded files, layers."""
    grid, header, layers = image.grid, image.header, image.layers
    num_classes, channels, side = len(task.card.classes) + layers.disagreement, task.card.channels, task.tile
    width = min(grid.columns.extent, (image.tiles_across - 1) * grid.columns.stride + side)
    sums = 2 * num_classes * side * width * 4
    rows = 2 * channels * (side + grid.rows.stride) * width * 4
    batch = grid.batch * side * side * 4 * (channels + 2 * num_classes)
    decoded = 0 if header.windowed else header.pixels * header.channels * (2 if header.dtype == "uint16" else 1)
    if image.scale.factor > 1:  # means and their enlargement, along one axis and along both
        full = image.region.right - image.region.left
        rows += grid.rows.stride * image.scale.factor * num_classes * 4 * (3 * width + 3 * full)
    kept = min(header.pixels * layers.bytes_per_pixel(), MEMORY_LIMIT)
    return sums + rows + batch + decoded + kept


def summary_text(result: Result) -> str:
    """Scores per class, output folders and failures."""
    lines = []
    if result.scores is not None:
        lines += [score_table(result.scores), ""]
    done = result.images - len(result.failures)
    again = f" ({result.reused} of them were finished before)" if result.reused else ""
    lines.append(f"{done} of {result.images} images segmented{again}: {result.folder}")
    lines += [f"  {kind}: {result.folder / FOLDERS[kind]}/" for kind in result.files]
    if result.failures:
        lines.append(f"{len(result.failures)} images failed, see {result.folder / FAILURES}")
        lines += [f"  {failure.error}" for failure in result.failures[:SHOWN_FAILURES]]
    if result.scores is not None:
        lines.append(f"  scores: {result.folder / SCORES}")
        over_images, over_pixels = result.scores["mean_iou_over_images"], result.scores["mean_iou_pixels"]
        if over_images is not None:
            lines.append(f"mean IoU over all pixels: {over_pixels:.4f}")
            lines.append(f"mean IoU over images: {over_images:.4f}")
    return "\n".join(lines)
