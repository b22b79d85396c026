"""What an inference job tells the person: the plan before, the result after."""

from segdist.inference.assignment import SMALLEST_CUT, Stretch, assign
from segdist.inference.evaluation import score_table
from segdist.inference.job import MEMORY_LIMIT, Result
from segdist.inference.task import Setup

SHOWN_FAILURES = 5


def inference_plan(setup: Setup, ranks: int) -> str:
    """Images, tiles, work per rank and memory, a line each."""
    good = [index for index, header in enumerate(setup.headers) if not header.error]
    stretches = [Stretch(index, setup.tile_rows(index), setup.tiles_across(index)) for index in good]
    pieces = assign(stretches, ranks)
    pixels = sum(setup.headers[index].pixels for index in good)
    lines = [
        "plan:",
        f"  model: {setup.model_file}, {setup.card.channels} channels, classes "
        + ", ".join(info.name for info in setup.card.classes),
        f"  input: {len(setup.headers)} images, {pixels / 1e6:.3f} megapixels"
        + (f", {len(setup.headers) - len(good)} of them can't be used" if len(good) < len(setup.headers) else ""),
        f"  tiles: {sum(stretch.tiles for stretch in stretches):,} of {setup.tile} x {setup.tile} pixels, overlap "
        f"{setup.config.overlap:.0%}, {setup.config.blending}, batches of {setup.config.batch_size}",
        f"  precision: {setup.precision.name} ({setup.precision.reason})",
        f"  output: {setup.folder}",
    ]
    for rank, piece in enumerate(pieces):
        images = len({stretch.image for stretch in piece})
        memory = max((memory_of(setup, stretch.image) for stretch in piece), default=0)
        lines.append(
            f"  rank {rank}: {images} images, {sum(stretch.tiles for stretch in piece):,} tiles, "
            f"{memory / 1e6:.0f} MB beside torch and the network's own"
        )
    if any(stretch.tiles >= SMALLEST_CUT for stretch in stretches) and ranks > 1:
        lines.append("  large images are cut between ranks, with one seam of tile rows computed on both sides")
    lines += [f"  can't be used: {header.error}" for header in setup.headers if header.error][:SHOWN_FAILURES]
    return "\n".join(lines)


def memory_of(setup: Setup, index: int) -> int:
    """Bytes that segmenting an image takes beside the network: row sums, image rows, a batch, decoded files, layers."""
    grid, header, layers = setup.grid(index), setup.headers[index], setup.layers(index)
    classes, channels, side = len(setup.card.classes), setup.card.channels, setup.tile
    width = min(grid.columns.extent, (setup.tiles_across(index) - 1) * grid.columns.stride + side)
    sums = 2 * classes * side * width * 4
    rows = 2 * channels * (side + grid.rows.stride) * width * 4
    batch = grid.batch * side * side * 4 * (channels + 2 * classes)
    decoded = 0 if header.windowed else header.pixels * header.channels * (2 if header.dtype == "uint16" else 1)
    kept = min(header.pixels * layers.bytes_per_pixel(), MEMORY_LIMIT)
    return sums + rows + batch + decoded + kept


def summary_text(result: Result) -> str:
    """Scores per class, where everything is, what failed."""
    lines = []
    if result.scores is not None:
        lines += [score_table(result.scores), ""]
    done = result.images - len(result.failures)
    again = f" ({result.reused} of them were finished before)" if result.reused else ""
    lines.append(f"{done} of {result.images} images segmented{again}: {result.folder}")
    folders = {"mask": "masks", "figure": "figures", "preview": "previews"}
    lines += [f"  {kind}: {result.folder / folders.get(kind, kind)}/" for kind in result.files]
    if result.failures:
        lines.append(f"{len(result.failures)} images failed, see {result.folder / 'failures.json'}")
        lines += [f"  {failure['error']}" for failure in result.failures[:SHOWN_FAILURES]]
    if result.scores is not None:
        lines.append(f"  scores: {result.folder / 'scores.json'}")
        over_images, over_pixels = result.scores["mean_iou_over_images"], result.scores["mean_iou_pixels"]
        if over_images is not None:
            lines.append(f"mean IoU over all pixels: {over_pixels:.4f}")
            lines.append(f"mean IoU over images: {over_images:.4f}")
    return "\n".join(lines)
