"""How many of the top regions listed by `segdist suspects` are wrong labels, compared with cleanlab.

    python -m tests.benchmarks.suspects FOLDER [seeds]

Draws 60 synthetic images, makes 5 % of their objects wrong (alternately by changing the class and by moving the object
by half its size), trains a model on each half of the images for `STEPS` steps with the wrong masks, and predicts the
other half. With N wrong objects, it counts the regions among the first N in which at least half the pixels are wrong.

cleanlab is optional: if installed, its `find_label_issues` selects the pixels, otherwise its published rule does. Pixel
scores are the probabilities of the given class (`self_confidence`), and a region gets their mean, because cleanlab
itself ranks images and pixels, not regions.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.measure import label, regionprops

from jobs import cli
from segdist.inference.finished_result import FinishedResult
from segdist.inference.suspects import find_suspects
from tests.benchmarks.cases import benchmark

IMAGES, STEPS, WRONG = 60, 150, 0.05
HALVES = ("a", "b")
Region = tuple[float, str, np.ndarray, np.ndarray]
"""Score, image, and rows and columns of its pixels."""


def main(words: list[str]) -> int:
    """Run the benchmark and print a line for each seed."""
    folder, seeds = Path(words[0]), [int(word) for word in words[1:]] or [0, 1, 2]
    print("| seed | wrong objects N | right in the first N: segdist suspects | cleanlab |\n|---|---|---|---|")
    for seed in seeds:
        wrong, results, count = prepared(folder / str(seed), seed)
        ours = theirs = 0
        ours = hits([region for result in results for region in of_suspects(result)], wrong, count)
        theirs = hits([region for result in results for region in of_cleanlab(result)], wrong, count)
        print(f"| {seed} | {count} | {ours} | {theirs} |")
    return 0


def prepared(folder: Path, seed: int) -> tuple[dict[str, np.ndarray], list[FinishedResult], int]:
    """Wrong pixels per image, predictions of both halves, and the number of wrong objects."""
    drawn = folder / "data" / "drawn" / "source" / "train"
    run("make-shards", "-f", "drawn", "--root", folder / "data", "--synthetic.train", IMAGES, "--seed", seed)
    rng, wrong, count = np.random.default_rng(seed), {}, 0
    for number, file in enumerate(sorted((drawn / "images").iterdir())):
        mask_file = next((drawn / "masks").glob(f"{file.stem}.*"))
        image = Image.open(mask_file)
        clean = np.asarray(image)
        noisy, changed = spoiled(clean, rng)
        wrong[file.stem], count = noisy != clean, count + changed
        half = folder / HALVES[number % 2]
        for kind in ("images", "masks"):
            (half / kind).mkdir(parents=True, exist_ok=True)
        (half / "images" / file.name).write_bytes(file.read_bytes())
        Image.fromarray(noisy).save(half / "masks" / f"{file.stem}.png")
    results = []
    for part, other in (HALVES, HALVES[::-1]):
        of_half = ["--images.folder", folder / part / "images", "--masks.folder", folder / part / "masks"]
        classes = ["--masks.classes", "background=0", "line=1", "ellipse=2"]
        run("make-shards", "-f", part, "--root", folder / "data", *of_half, *classes)
        trained = folder / "runs" / part
        run("train", "-f", folder / "data" / part, "--name", trained, "--steps", STEPS)
        truth = ["--masks.folder", folder / other / "masks", *classes]
        out = [
            "--out",
            folder / "predictions" / other,
            "--output.probabilities",
            "float32",
            "--output.figures",
            0,
            "--no-flips",
        ]
        run("infer", "-m", trained, "-i", folder / other / "images", *truth, *out)
        results.append(FinishedResult(folder / "predictions" / other))
    return wrong, results, count


def run(job: str, *words: object) -> None:
    """Run a segdist job in this process."""
    tracking = ["--wandb", "off"] if job != "make-shards" else []
    if code := cli.main([job, *map(str, words), *tracking]):
        sys.exit(f"segdist {job} ended with {code}")


def spoiled(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A mask (H, W) with a share `WRONG` of its objects reclassified or moved, and their number."""
    noisy, count = mask.copy(), 0
    for thing in regionprops(label(mask, background=0)):  # type: ignore[no-untyped-call]
        if rng.random() >= WRONG:
            continue
        count += 1
        rows, columns = thing.coords.T
        given = int(mask[rows[0], columns[0]])
        if count % 2:
            noisy[rows, columns] = 3 - given
            continue
        noisy[rows, columns] = 0
        top, left, bottom, right = thing.bbox
        rows, columns = rows + (bottom - top + 1) // 2, columns + (right - left + 1) // 2
        there = (rows < mask.shape[0]) & (columns < mask.shape[1])
        noisy[rows[there], columns[there]] = given
    return noisy, count


def of_suspects(result: FinishedResult) -> list[Region]:
    """Regions found by `segdist suspects`."""
    found = []
    predictions = {image.name: whole(result, image.name) for image in result.images}
    for suspect in find_suspects(result):
        truth, probabilities = predictions[suspect.image]
        pair = (truth == result.class_names.index(suspect.given)) & (
            probabilities.argmax(axis=0) == result.class_names.index(suspect.predicted)
        )
        numbered = label(pair)  # type: ignore[no-untyped-call]
        rows, columns = np.nonzero(numbered == numbered[suspect.top, suspect.first_column])
        found.append((suspect.score, suspect.image, rows, columns))
    return found


def of_cleanlab(result: FinishedResult) -> list[Region]:
    """Connected pixels of one given class that cleanlab flags, least probable given labels first."""
    names = [image.name for image in result.images]
    loaded = [whole(result, name) for name in names]
    truth = np.stack([labels for labels, _ in loaded]).astype(int)
    probabilities = np.stack([maps for _, maps in loaded])
    found: list[Region] = []
    for name, labels, maps, flagged in zip(names, truth, probabilities, issues(truth, probabilities), strict=True):
        given = np.take_along_axis(maps, labels[None], axis=0)[0]
        for thing in regionprops(label(np.where(flagged, labels + 1, 0), background=0)):  # type: ignore[no-untyped-call]
            rows, columns = thing.coords.T
            found.append((1 - float(given[rows, columns].mean()), name, rows, columns))
    return found


def issues(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Pixels that cleanlab's `find_label_issues` flags, bool (N, H, W).

    Without cleanlab, these are the off-diagonal pixels of the confident joint (Northcutt et al. 2021, "Confident
    Learning", equation 1): the most probable class that reaches its own mean self-confidence is not the given one.
    """
    try:
        module = importlib.import_module("cleanlab.segmentation.filter")
    except ImportError:
        maps = np.moveaxis(probabilities, 1, 0)
        thresholds = np.array([maps[k][truth == k].mean() for k in range(len(maps))])
        confident = maps >= thresholds[:, None, None, None]
        best = np.where(confident, maps, -1).argmax(axis=0)
        flagged: np.ndarray = confident.any(axis=0) & (best != truth)
        return flagged
    return np.asarray(module.find_label_issues(truth, probabilities, downsample=1, n_jobs=1, verbose=False))


def whole(result: FinishedResult, name: str) -> tuple[np.ndarray, np.ndarray]:
    """True labels (H, W) and probabilities (K, H, W) of an image."""
    image = next(image for image in result.images if image.name == name)
    with result.opened(image) as opened:
        block = opened.read(0, opened.shape[0])
    return block.truth, block.probabilities


def hits(regions: list[Region], wrong: dict[str, np.ndarray], count: int) -> int:
    """Number of wrong labels among the first `count` regions."""
    first = sorted(regions, key=lambda region: -region[0])[:count]
    return sum(bool(wrong[name][rows, columns].mean() >= 0.5) for _, name, rows, columns in first)


if __name__ == "__main__":
    benchmark(main)
