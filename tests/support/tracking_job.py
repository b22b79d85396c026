"""A stand-in for a training job that only tracks, controlled by its standard input, one command per line.

log FIRST LAST    rows FIRST..LAST, `val/mean_iou` in every fifth, answered by "logged"
picture STEP      a validation patch with masks and a confusion matrix
table STEP        a table
artifact PATH     a file as an artifact
safe              waits until W&B has written everything to disk, answered by "safe"
finish STATE      closes the trackers, answered by "finished"
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from segdist.core.parsing import from_dict
from segdist.tracking import TrackingConfig, open_trackers
from shards.manifest import ClassInfo

CLASSES = (ClassInfo("background", (0, 0, 0)), ClassInfo("line", (230, 159, 0)))


def main() -> None:
    """`tracking_job.py RUN_FOLDER [CONFIG_JSON [RUN_ID]]`"""
    folder, config, *run_id = sys.argv[1:]
    tracking = from_dict(TrackingConfig, json.loads(config), "test")
    trackers = open_trackers(
        tracking, Path(folder), {"optim": {"lr": 0.01}}, run_id=run_id[0] if run_id else None, classes=CLASSES
    )
    print(f"open {trackers.run_id} {trackers.last_logged_step}", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["log", first, last]:
                for step in range(int(first), int(last) + 1):
                    trackers.log({"train/loss": 1 / step}, step)
                    if step % 5 == 0:
                        trackers.log({"val/mean_iou": step / 100}, step)
                trackers.state()
                print("logged", flush=True)
            case ["picture", step]:
                patch = np.zeros((32, 48), np.uint8)
                trackers.log_prediction("patch 0", patch, patch + 1, patch, int(step))
                trackers.log_confusion(np.array([[90, 10], [0, 50]]), ["background", "line"], int(step))
                trackers.state()
                print("logged", flush=True)
            case ["table", step]:
                trackers.log_table("worst images", ["image", "mean IoU"], [["a.png", 0.5]], int(step))
                print("logged", flush=True)
            case ["artifact", path]:
                trackers.log_artifact(Path(path), "a name: with (anything)")
                print("logged", flush=True)
            case ["safe"]:
                time.sleep(3)  # twice the flush interval plus a transmission
                print("safe", flush=True)
            case ["finish", state]:
                trackers.finish("stopped" if state == "stopped" else "finished")
                print("finished", flush=True)


main()
