"""Cost of finished images in a restart or a merge of array results: checking them and computing scores.

Records are generated, each with its mask file; image headers, which a job reads beforehand, are made up.
"""

import resource
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

MILLION, FOLDER_OF = 10**6, 1000
CLASSES = 3
OUTPUTS = "masks"


def generated_images(folder: Path, count: int) -> list[Any]:
    """`count` images sharing one true mask, in folders of `FOLDER_OF`."""
    from segdist.inference.config import OutputConfig
    from segdist.inference.enlarge import Scale
    from segdist.inference.grid import make_grid
    from segdist.inference.inputs import Header
    from segdist.inference.layers import Layers
    from segdist.inference.task import ImageTask
    from segdist.inference.tiler import Region

    side = 96
    scale, region, grid = Scale(1, side, side), Region(0, side, 0, side), make_grid(side, side, side, 0.5, 16)
    layers = Layers.wanted(OutputConfig(), CLASSES, figure=False)
    mask = folder / "truth.png"
    if not mask.exists():  # its modification time is part of the records
        mask.touch()
    return [
        ImageTask(
            number,
            f"{number // FOLDER_OF:04}/{number:07}",
            f"/images/{number // FOLDER_OF:04}/{number:07}.png",
            str(mask),
            Header(side, side, 1, "uint8", size=9000 + number % 1000, changed=1_700_000_000_000_000_000 + number),
            region,
            scale,
            grid,
            layers,
            False,
        )
        for number in range(count)
    ]


def write_results(folder: Path, images: list[Any]) -> None:
    """Note each image as finished, with an empty mask file."""
    from segdist.inference.result_folder import ResultFolder

    results = ResultFolder(folder, images)
    for image in images:
        mask = folder / OUTPUTS / f"{image.name}.png"
        if image.number % FOLDER_OF == 0:
            mask.parent.mkdir(parents=True)
        mask.touch()
        right = 9000 - image.number % 1000
        confusion = [[right, 9216 - right, 0], [3, 700, 1], [0, 2, 50]]
        scores = {"mean_iou": right / 9216, "pixel_accuracy": right / 9216, "iou": [0.9, 0.5, None]}
        scores |= {"dice": [0.9, 0.5, None], "confusion_matrix": confusion, "image": image.path, "mask": image.mask}
        files = {"mask": f"{OUTPUTS}/{image.name}.png"}
        scores["prediction"] = files["mask"]
        results.write_record(image, files, scores)


def case_finished(folder: str, count: int) -> dict[str, Any]:
    """Check a folder whose images are all finished and write the scores; seconds for each."""
    import torch

    from segdist.core.files import remove_leftovers
    from segdist.inference.config import InferConfig
    from segdist.inference.job import Done, _conclude
    from segdist.inference.result_folder import ResultFolder
    from segdist.inference.survey import collection_paused, survey
    from segdist.inference.task import Task
    from segdist.model.card import ModelCard
    from segdist.model.config import ModelConfig
    from segdist.model.precision import choose_precision
    from segdist.ranks.launchers import RankEnvironment
    from segdist.ranks.process_group import Ranks
    from shards.manifest import ClassInfo

    torch.set_num_threads(1)
    place = Path(folder)
    images = generated_images(place, count)
    classes = tuple(ClassInfo(f"class{label}", (90 * label, 90, 90)) for label in range(CLASSES))
    card = ModelCard(ModelConfig(), classes, 1, "uint8", 96, (128.0,), (60.0,), 16)
    device = torch.device("cpu")
    config = InferConfig(model=("none",), images=("/images",), out=folder, quiet=True)
    precision = choose_precision(config.precision, device)
    task = Task(config, (card,), (), place, 96, precision, "/images", None, tuple(images))
    ranks = Ranks(RankEnvironment("single"), device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    marks = [(time.perf_counter(), time.process_time())]
    remove_leftovers(place, deep=True)
    found = survey(task, ResultFolder(place, images), ranks)
    marks.append((time.perf_counter(), time.process_time()))
    with collection_paused():
        result = _conclude(task, Done(task, ranks, dict(found.records), {}), reused=len(found.records))
    marks.append((time.perf_counter(), time.process_time()))
    if result.reused != count or found.parts:
        raise SystemExit(f"{result.reused} of {count} images were recognized as finished")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (look, look_cpu), (write, write_cpu) = ((b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks))
    return {"look": look, "look_cpu": look_cpu, "write": write, "write_cpu": write_cpu, "mb": (peak - before) / 1024}
