"""Training on a GPU: the job compared with a bare loop, Lightning and MONAI, and utilization of the GPU.

Every ratio is measured within one run on one GPU. The bare loop takes the same steps on one batch on the device: with
the job's flips and normalization in each step (the bar), and without (for information).
"""

import importlib.util
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from segdist.training.config import AugmentConfig
from tests.benchmarks.bars import Bars
from tests.benchmarks.gpu import peers
from tests.benchmarks.gpu.bare import BareStep, Mode, Shape, flops_of_step
from tests.benchmarks.gpu.jobs import make_set, segdist, trained_samples_per_second, working_in
from tests.benchmarks.gpu.machine import Machine

SHAPES = [
    *(Shape(16, 96, 64), Shape(64, 96, 64), Shape(256, 96, 64), Shape(16, 96, 32), Shape(256, 96, 32)),
    *(Shape(16, 256, 64), Shape(64, 256, 32), Shape(16, 512, 64), Shape(32, 512, 32)),
]
TINY = [Shape(4, 32, 4), Shape(8, 32, 4)]
JOB = Mode("as the job: bf16, NHWC")
AUGMENTED = ("--augment.rotate", 15, "--augment.scale", 0.1, "--augment.brightness", 0.1, "--augment.noise", 0.05)
AUGMENT = AugmentConfig(rotate=15, scale=0.1, brightness=0.1, noise=0.05)


def run(machine: Machine, bars: Bars) -> None:
    """The part `training`."""
    shapes = TINY if machine.tiny else SHAPES
    with tempfile.TemporaryDirectory() as folder, working_in(Path(folder)):
        make_sets(machine, shapes)
        speeds: dict[Shape, float] = {}
        beside_the_bare_loop(machine, bars, shapes[:3], speeds)
        telling = [shapes[0], shapes[min(2, len(shapes) - 1)]]
        utilization(machine, telling)
        beside_peers(machine, bars, telling, speeds)
        beside_the_bare_loop(machine, bars, shapes[3:], speeds)
        augmented(machine, bars, shapes[0])


def make_sets(machine: Machine, shapes: list[Shape]) -> None:
    """Build a shard set for each patch side."""
    for patch in sorted({shape.patch for shape in shapes}):
        images, per_image = (4, 16) if machine.tiny else (40, 64 if patch <= 256 else 16)
        make_set(f"p{patch}", patch, images, per_image, side=patch * 2 if patch < 512 else 768)
    print(f"  sets made, {machine.spent():.0f} s")


def job_speed(machine: Machine, shape: Shape, step_seconds: float, *options: object) -> tuple[float, float]:
    """Samples/s of `segdist train`, and the share of time spent waiting for data."""
    name = f"b{shape.batch}-p{shape.patch}-w{shape.width}" + "-more" * bool(options)
    rows = 5 if machine.tiny else 8
    # About four seconds, not counting the first metrics row.
    every = 2 if machine.tiny else max(10, min(200, int(4 / rows / step_seconds)))
    steps = every * (rows + 1)
    segdist("train", "-f", f"p{shape.patch}", "-n", name, "-b", shape.batch, "--model.width", shape.width,
            "--steps", steps, "--epoch-steps", steps, "--log-every", every, "--precision", "bf16",
            "--device", machine.device.type, "--wandb", "off", "--quiet", *options)  # fmt: skip
    machine.free()
    return trained_samples_per_second(name, shape.batch)


def bare_seconds(machine: Machine, shape: Shape, mode: Mode, augment: AugmentConfig | None = None) -> float:
    """Seconds per bare step."""
    step = BareStep(shape, mode, machine.device, augment).step
    seconds = machine.seconds_per_call(step, warm_up=1 if machine.tiny else 10, at_least=1.5)
    del step
    machine.free()
    return seconds


def beside_the_bare_loop(machine: Machine, bars: Bars, shapes: list[Shape], speeds: dict[Shape, float]) -> None:
    """The job's samples/s relative to the bare loop."""
    print("  samples/s of                              bare   with flips   the job   ratio   to bare   waits")
    for shape in shapes:
        if not machine.has_time(f"the job and the bare loop, {shape}", 15):
            continue
        plain = bare_seconds(machine, shape, JOB)
        flips = bare_seconds(machine, shape, JOB, AugmentConfig())
        speeds[shape], waits = job_speed(machine, shape, flips)
        ratio = speeds[shape] * flips / shape.batch
        print(
            f"  {shape}   {shape.batch / plain:10.0f}   {shape.batch / flips:10.0f}   {speeds[shape]:7.0f}   "
            f"{ratio:.3f}   {speeds[shape] * plain / shape.batch:7.3f}   {waits:5.1%}"
        )
        bars.at_least(f"{shape}: job / bare loop with flips", ratio, 0.97)


def beside_peers(machine: Machine, bars: Bars, shapes: list[Shape], speeds: dict[Shape, float]) -> None:
    """The job's samples/s relative to Lightning and MONAI's trainer."""
    for name, package, train in (("Lightning", "lightning", peers.lightning), ("MONAI", "ignite", peers.monai)):
        if not importlib.util.find_spec(package):
            print(f"  SKIPPED: {name} (package {package} is not installed)")
            continue
        for shape in shapes:
            if shape not in speeds or not machine.has_time(f"{name}, {shape}", 25):
                continue
            warm_up, steps = (2, 4) if machine.tiny else (60, 300 if shape.batch <= 64 else 150)
            speed = _tried(partial(train, machine, Path("data") / f"p{shape.patch}", shape, warm_up, steps))
            machine.free()
            if speed is None:
                continue
            print(f"  {name:<9} {shape}   {speed:8.0f} samples/s   segdist {speeds[shape]:8.0f}")
            # Data loading limits a peer that is slower than the network alone.
            alone = shape.batch / bare_seconds(machine, shape, JOB)
            binds = speed < 0.67 * alone
            print(f"    the network alone {alone:.0f}: {name} is {'' if binds else 'not '}limited by data loading")
            bars.at_least(f"{shape}: segdist / {name}", speeds[shape] / speed, 1.5 if binds else 1.0)


def utilization(machine: Machine, shapes: list[Shape]) -> None:
    """Model FLOPs utilization of several modes, as a share of the GPU's measured matrix-product rate."""
    peak = matrix_rate(machine)
    print(f"  bf16 matrix product on this GPU: {peak / 1e12:.1f} TFLOP/s; shares below are relative to this")
    static: dict[str, object] = {"dynamic": False} | ({"backend": "aot_eager"} if machine.tiny else {})
    modes = [
        *(JOB, Mode("bf16, NCHW", channels_last=False), Mode("fp32 (convolutions in TF32), NHWC", precision=None)),
        Mode("compile", compile=static),
    ]
    if not machine.tiny:
        tuned = "max-autotune-no-cudagraphs"
        modes += [
            Mode("CUDA graph of the step", graph=True),
            Mode("compile + CUDA graph of the step", compile=static, graph=True),
            Mode("compile, reduce-overhead", compile=static | {"mode": "reduce-overhead"}),
            Mode("compile, bf16, NCHW", compile=static, channels_last=False),
            Mode(f"compile, {tuned}", compile=static | {"mode": tuned}),
        ]
    print("  model FLOPs utilization                                             ms/step   samples/s   TFLOP/s   share")
    for mode in modes:
        for shape in shapes:
            need = 150 if "autotune" in mode.name else 40 if mode.compile else 8
            if not machine.has_time(f"{mode.name}, {shape}", need):
                continue
            seconds = _tried(partial(bare_seconds, machine, shape, mode))
            torch._dynamo.reset()
            machine.free()
            if seconds is None:
                continue
            rate = flops_of_step(shape) / seconds
            print(
                f"  {shape}   {mode.name:<36}   {seconds * 1e3:7.2f}   {shape.batch / seconds:9.0f}   "
                f"{rate / 1e12:7.2f}   {rate / peak:5.1%}"
            )


def augmented(machine: Machine, bars: Bars, shape: Shape) -> None:
    """Training with rotation, zoom, brightness and noise, compared with a bare step with the same augmentation."""
    if not machine.has_time("augmentation", 15):
        return
    bare = bare_seconds(machine, shape, JOB, AUGMENT)
    speed, _ = job_speed(machine, shape, bare, *AUGMENTED)
    print(f"  {shape}, augmented: bare {shape.batch / bare:.0f} samples/s, the job {speed:.0f}")
    bars.at_least(f"{shape}, augmented: job / bare loop with the same", speed * bare / shape.batch, 0.97)


def matrix_rate(machine: Machine) -> float:
    """Floating-point operations per second of a large matrix product in bf16."""
    side = 256 if machine.tiny else 8192
    left, right = (torch.randn(side, side, device=machine.device).bfloat16() for _ in range(2))
    return 2 * side**3 / machine.seconds_per_call(lambda: left @ right)


def _tried(call: Callable[[], float]) -> float | None:
    """The result of `call`, or None after printing its error, so that one failure doesn't stop the other cases."""
    try:
        return call()
    except Exception:
        print("  FAILED: " + traceback.format_exc(limit=-3))
        return None
