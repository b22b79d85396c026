"""The package: one version everywhere, and a wheel that works without a checkout."""

import configparser
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import segdist
from tests.support.programs import ROOT, environment

ROOMS = ("jobs", "segdist", "shards", "slurm")
ONLY_IN_A_CHECKOUT = {"jobs/demo.sh", "jobs/demo.toml", "jobs/setup.sh"}
DEMO = """
name = "demo"
processes = 2

[make_shards]
synthetic = {train = 8, test = 4, width = 70, height = 90}
patches = {size = 32, per_image = 4}

[train]
preset = "fast"
steps = 2
batch_size = 4
model = {width = 4, depth = 2}
tracking = {wandb = "off"}

[infer]
output = {probabilities = "float16"}
tracking = {wandb = "off"}
"""
"""A smaller jobs/demo.toml."""


def test_the_version_is_the_latest_release_of_the_changelog() -> None:
    versions = re.findall(r"^## (?!Unreleased)(\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == segdist.__version__


def test_the_changelog_starts_with_unreleased_changes() -> None:
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == "Unreleased"


def test_the_package_takes_its_version_from_the_program() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: segdist.__version__"
    assert f"version: {segdist.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_continuous_integration_runs_the_full_test_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert steps[-1].endswith("bash .ci/run")
    assert "tests/run.sh" in (ROOT / ".ci" / "run").read_text()


def test_pre_commit_hooks_are_the_checks_of_the_test_script() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [each["repo"] for each in repositories] == ["local"]
    tools = [" ".join(hook["entry"].split()[:2]) for hook in repositories[0]["hooks"]]
    assert tools == [".venv/bin/ruff check", ".venv/bin/ruff format", ".venv/bin/mypy"]
    script = (ROOT / "tests" / "run.sh").read_text()
    assert all(tool in script for tool in tools)


@pytest.mark.parametrize("form", ["bug.yml", "idea.yml"])
def test_issue_forms_have_the_required_fields(form: str) -> None:
    content = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / form).read_text())
    assert content["name"]
    assert content["description"]
    assert all(item["type"] == "textarea" and item["attributes"]["label"] for item in content["body"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources so that the checkout stays unchanged."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    found = list(folder.glob("*.whl"))
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_rooms(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    ours = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours - names == ONLY_IN_A_CHECKOUT
    assert {name.split("/")[0] for name in names} == {*ROOMS, f"segdist-{segdist.__version__}.dist-info"}


@pytest.mark.slow
def test_the_wheel_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """In a separate environment that borrows this one's dependencies."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    paths = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    here = sysconfig.get_path("purelib")
    (Path(sysconfig.get_path("purelib", vars=paths)) / "dependencies.pth").write_text(f"{here}\n")
    # PYTHONPATH would let it find the checkout.
    environ = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    desk = tmp_path / "desk"
    desk.mkdir()
    (desk / "demo.toml").write_text(DEMO)

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(programs / command[0]), *command[1:]],
            cwd=desk,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run("python", "-c", "import segdist, jobs, shards, slurm; print(segdist.__file__, jobs.__file__)")
    assert all(Path(path).is_relative_to(tmp_path / "venv") for path in where.split())
    assert run("segdist", "--version") == f"segdist {segdist.__version__}\n"
    assert "make-shards" in run("segdist", "--help")
    assert "4 of 4 images segmented" in run("segdist", "pipeline", "--config", "demo.toml")
    assert (desk / "runs" / "demo" / "report.html").is_file()
    assert len(list((desk / "runs" / "demo" / "predictions").rglob("masks/*.png"))) == 4
    assert "nodes" in run("segdist", "submit", "train", "--profile", "gpu-node", "--dry-run", "--", "-f", "demo")
