"""Correctness on a GPU: all tests marked gpu, and the difference of results from the CPU."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.bars import Bars
from tests.benchmarks.gpu.jobs import make_set, segdist, working_in
from tests.benchmarks.gpu.machine import Machine

ROOT = Path(__file__).resolve().parents[3]


def run(machine: Machine, bars: Bars) -> None:
    """The part `right`."""
    marked_tests(machine, bars)
    with tempfile.TemporaryDirectory() as folder, working_in(Path(folder)):
        beside_the_cpu(machine, bars)


def marked_tests(machine: Machine, bars: Bars) -> None:
    """Run the tests marked gpu: precisions, compile, bit-exact resume, NCCL, two ranks on a GPU, out of memory."""
    files = [path for path in sorted(ROOT.glob("tests/**/test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rA", "--tb=short", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") and machine.cores > 2:
        command += ["-n", str(min(8, machine.cores // 2))]
    # The output is long, so it is shown only on failure.
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([*command, *map(str, files)], cwd=ROOT, env=environ, capture_output=True, text=True)
    lines = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) .*", done.stdout, re.MULTILINE)
    for line in sorted(set(re.findall(r"^(?:PASSED|FAILED|ERROR|SKIPPED) .*", done.stdout, re.MULTILINE))):
        print(f"  {line}")
    passed, skipped = lines.count("PASSED"), len(re.findall("NO GPU HERE", done.stdout))
    failed = done.returncode not in (0, 5)
    if failed:
        print(done.stdout[-6000:], done.stderr[-2000:])
    print(f"  tests marked gpu: {passed} passed, {machine.spent():.0f} s" + (", the rest skipped" if skipped else ""))
    if not machine.tiny:
        bars.at_least("tests marked gpu that passed", passed, 12)
    bars.at_most("runs of the tests marked gpu that failed", int(failed), 0)


def beside_the_cpu(machine: Machine, bars: Bars) -> None:
    """Compare masks of one model from CPU and GPU in every precision, and from two GPU runs."""
    import tifffile

    size = 96 if machine.tiny else 512
    width, steps = (4, 4) if machine.tiny else (32, 300)
    make_set("right", 32 if machine.tiny else 96, images=10, per_image=20, side=160)
    quiet = ("--wandb", "off", "--quiet")
    device = machine.device.type
    options = ("--steps", steps, "--preset", "fast", "--model.width", width, "--device", device)
    segdist("train", "-f", "right", "-n", "right", *options, *quiet)
    image = smooth_noise(size, size)
    tifffile.imwrite("image.tif", image, tile=(96, 96) if machine.tiny else (512, 512))
    names = ("--output.figures", 0, "--output.no-previews", "--output.mask-format", "tiff")
    cases = [
        ("reference", "cpu", "fp32"),
        ("fp32", device, "fp32"),
        ("fp32 again", device, "fp32"),
        ("bf16", device, "bf16"),
    ]
    cases += [] if machine.tiny else [("fp16", device, "fp16")]
    found = {}
    for name, where, precision in cases:
        out = f"out-{name.replace(' ', '-')}"
        segdist("infer", "-m", "right", "-i", "image.tif", "-o", out, "--device", where, "--precision", precision,
                *names, *quiet)  # fmt: skip
        found[name] = tifffile.imread(f"{out}/masks/image.tif")
    reference = found.pop("reference")
    print(f"  classes in the CPU's mask, pixels: {np.bincount(reference.ravel(), minlength=3).tolist()}")
    shares = {name: float(np.mean(mask != reference)) for name, mask in found.items()}
    for name, share in shares.items():
        print(f"  {device} in {name:<10} differs from the CPU in {share:.2e} of the pixels")
    bars.at_most("pixels in which the GPU in fp32 differs from the CPU, share", shares["fp32"], 1e-3)
    bars.at_most("pixels in which the GPU in bf16 differs from the CPU, share", shares["bf16"], 2e-2)
    bars.at_most("pixels that differ in a second run", int((found["fp32"] != found["fp32 again"]).sum()), 0)


def smooth_noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W): blobs of about 16 pixels with grain, so that masks have realistic regions."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 200, (-(-height // 16), -(-width // 16)), dtype=np.uint8)
    blobs = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return blobs + generator.integers(0, 40, (height, width), dtype=np.uint8)
