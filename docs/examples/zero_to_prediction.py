# %% [markdown]
# # From no data to a prediction
#
# A few labeled images, patches, a small network, a prediction with a score: the whole pipeline, in Python. Cells begin
# with `# %%`: VS Code, PyCharm and Spyder run them one by one, Jupyter after `jupytext --to notebook`. As a script,
#
#     python docs/examples/zero_to_prediction.py
#
# takes about a minute on two cores. Everything is written below `zero/` in the current folder. Rerunning a cell
# keeps what is finished.

# %%
import os
from pathlib import Path

import numpy as np
from PIL import Image

DESK = Path("zero").absolute()
STEPS = 120
DESK.mkdir(exist_ok=True)
os.chdir(DESK)  # shard sets go to data/, runs to runs/, as with the commands

# %% [markdown]
# ## Labeled images
#
# Your own data would be two folders: images, and masks with the same names whose values are the classes. Here we draw
# bright discs and dark rings on a noisy background: ten images for training and one to try the result on.


# %%
def draw(seed: int, side: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """An image (side, side), uint8, and its mask: 0 background, 1 disc, 2 ring."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    image, mask = np.full((side, side), 110.0), np.zeros((side, side), np.uint8)
    for number in range(8):
        row, column, radius = *generator.uniform(0, side, 2), generator.uniform(8, 18)
        distance = np.hypot(rows - row, columns - column)
        label = 1 + number % 2
        inside = distance < radius if label == 1 else np.abs(distance - radius) < 3
        image[inside], mask[inside] = (180, 1) if label == 1 else (50, 2)
    return (image + generator.normal(0, 25, image.shape)).clip(0, 255).astype(np.uint8), mask


for seed in range(11):
    image, mask = draw(seed)
    part = "try" if seed == 10 else "learn"
    for kind, array in (("images", image), ("masks", mask)):
        folder = DESK / part / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{seed:02}.png")

# %% [markdown]
# ## Patches
#
# This is `segdist make-shards -f discs --images.folder learn/images --masks.folder learn/masks …` in Python. Splits
# are by image; `--masks.classes` names the classes in the order of the mask values.

# %%
import segdist
from shards.read.inspect import contact_sheet

discs = segdist.make_shards(
    name="discs",
    images={"folder": DESK / "learn" / "images"},
    masks={"folder": DESK / "learn" / "masks", "classes": ["background", "disc", "ring"]},
    patches={"size": 64, "per_image": 12},
)
sheet = DESK / "patches.png"
sheet.write_bytes(contact_sheet(discs))
print(f"patches and their masks: {sheet}")

# %% [markdown]
# ## Training
#
# This is `segdist train -f discs …`. The run folder `runs/discs` holds everything. Rerun, this cell finds the run
# finished; with more `STEPS`, it continues.

# %%
run = segdist.train(
    data=discs,
    preset="paper",
    steps=STEPS,
    batch_size=8,
    validate_every=40,
    log_every=10,
    model={"width": 16, "depth": 3},
    optim={"optimizer": "adamw", "lr": 3e-3, "schedule": "onecycle"},
    tracking={"wandb": "off"},
    quiet=False,  # show progress
)  # one process here; torchrun and Slurm give more

# %% [markdown]
# ## A prediction
#
# Images can be any size: overlapping tiles cover the image, and their probabilities are averaged.

# %%
image = np.array(Image.open("try/images/10.png"))
truth = np.array(Image.open("try/masks/10.png"))
probabilities = segdist.predict(run.folder, image)  # float32 (classes, height, width), sums to 1
prediction = probabilities.argmax(axis=0).astype(np.uint8)

# %% [markdown]
# ## Scores and a figure

# %%
import torch

from segdist.inference.pictures import draw_figure
from segdist.model.metrics import confusion_matrix, iou_per_class, mean_iou

classes = discs.manifest.classes
confusion = confusion_matrix(torch.from_numpy(truth), torch.from_numpy(prediction), len(classes))
for info, iou in zip(classes, iou_per_class(confusion).tolist(), strict=True):
    print(f"IoU {info.name:<10} {iou:.4f}")
print(f"mean IoU       {mean_iou(confusion):.4f}")

figure = DESK / "prediction.png"
title = f"mean IoU {mean_iou(confusion):.4f}"
draw_figure(figure, title, image[..., None], truth, prediction, probabilities, classes)
print(f"original, truth, prediction, errors, probabilities: {figure}")
print(f"the run on one page, for a browser: {(run.folder / 'report.html').absolute()}")
