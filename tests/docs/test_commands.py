"""No command of the README and the docs is left without a test, and the jobs and options that they mention exist."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

from jobs import cli
from tests.support.pages import NOT_RUN, PAGES, commands, inline_code, reason_not_to_run
from tests.support.programs import ROOT

PAGES_RUN = {
    page
    for file in Path(__file__).parent.glob("test_*.py")
    for page in re.findall(r'run_page\("([\w.-]+)"', file.read_text())
}
"""The pages whose commands the other files here run."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_of_a_page_is_forgotten(page: Path) -> None:
    shown = [command.text for command in commands(page)]
    left = [text for text in shown if reason_not_to_run(page, text) is None]
    assert page.name in PAGES_RUN or not left, f"{page.name} has commands that no test runs: {left}"
    for beginning in NOT_RUN.get(page.name, {}):
        assert any(text.startswith(beginning) for text in shown), f"{page.name} has no command {beginning!r} any more"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of every job, as `--help` shows them."""
    found = {}
    for job in cli.JOBS:
        kinds: list[list[str]] = [[]]
        if job == "submit":
            kinds = [["make-shards"], ["train"], ["infer"], ["cross-validate"], ["pipeline"], ["report"]]
        if job == "shards":
            kinds = [["inspect"], ["verify"]]
        text = io.StringIO()
        for kind in kinds:
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                cli.main([job, *kind, "--help"])
        found[job] = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w.-]*", text.getvalue()))
    return found


OTHER_TOOLS = {
    *("--standalone", "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"),
    *("--ntasks-per-node", "--cpus-per-task", "--kill-on-bad-exit", "--no-install-recommends", "--quick", "--fresh"),
    *("--partition", "--gpus-per-node", "--time", "--pty", "--container-image", "--container-mounts", "--nv"),
    *("--rounds", "--constraint", "--privileged", "--resolve", "--part", "--trials", "--count", "--rdzv-conf"),
}
"""Options of torchrun, Slurm and other programs that the pages mention."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_jobs_and_options_that_a_page_mentions_exist(page: Path, options: dict[str, set[str]]) -> None:
    everything = set().union(*options.values()) | OTHER_TOOLS
    for span in inline_code(page):
        words = span.split()
        if words[0] == "segdist" and len(words) > 1:
            assert words[1] in (*cli.JOBS, "JOB", "[onnx]"), span
            given = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
            assert given <= options.get(words[1], set()) | {"--help", "--dry-run"}, span
        for word in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span):
            assert word.rstrip(".") in everything, f"{page.name}: {span}"


def test_settings_files_of_the_docs_are_accepted(tmp_path: Path) -> None:
    """The cluster's profile has its own test."""
    from jobs.command_line import parse
    from segdist.training.config import TrainConfig

    found = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "training.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    for number, text in enumerate(found):
        (tmp_path / f"{number}.toml").write_text(text)
        config = parse(TrainConfig, ["--config", str(tmp_path / f"{number}.toml")], "train", "").job
        assert config.model.factory == tomllib.loads(text)["model"]["factory"]


def test_the_pages_that_the_readme_and_the_docs_name_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"
