"""Settings that W&B would reject later are refused at the start; a sweep's id is used by one training only."""

from pathlib import Path

import pytest

from segdist.core.errors import UserError
from segdist.tracking.config import TrackingConfig
from segdist.tracking.wandb_pieces import StateFile


@pytest.mark.parametrize(
    ("config", "variables", "words"),
    [
        ({"tags": ("t" * 65,)}, {}, "a W&B tag has 1 to 64 characters, but this one has 65"),
        ({"tags": ("good", "")}, {}, "--wandb-tags ''"),
        ({"project": "team/cells"}, {}, "--wandb-project 'team/cells': a W&B project name has"),
        ({"project": "x" * 129}, {}, "at most 128 characters"),
        ({}, {"WANDB_PROJECT": "50%"}, "$WANDB_PROJECT '50%'"),
        ({}, {"WANDB_MODE": "bogus"}, "$WANDB_MODE is 'bogus': choose one of online, offline"),
        ({}, {"WANDB_RUN_ID": "a/b"}, "$WANDB_RUN_ID is 'a/b'"),
    ],
)
def test_bad_settings_are_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object], variables: dict[str, str], words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        TrackingConfig(**config).validate()  # type: ignore[arg-type]
    assert words in str(error.value)
    # Without W&B, these settings don't matter.
    TrackingConfig(**config, wandb="off").validate()  # type: ignore[arg-type]
    TrackingConfig(**config, trackers="none").validate()  # type: ignore[arg-type]


def test_wandb_itself_enforces_these_rules() -> None:
    import wandb
    from wandb.errors import UsageError

    def refused(**settings: object) -> bool:
        try:
            wandb.Settings(**settings)  # type: ignore[arg-type]
        except (ValueError, UsageError):
            return True
        return False

    assert not refused(run_tags=("t" * 64,), project="x" * 128, mode="dryrun", run_id="abc")
    assert refused(run_tags=("t" * 65,))
    assert refused(run_tags=("",))
    assert all(refused(project=f"a{character}b") for character in "/\\#?%:")
    assert refused(project="x" * 129)
    assert refused(mode="bogus")
    assert all(refused(run_id=f"a{character}b") for character in ":;,#?/'")


def test_a_sweeps_id_is_used_by_one_training_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")

    def state_of(run: str) -> StateFile:
        file = StateFile(tmp_path / run / "wandb" / "state.json")
        file.path.parent.mkdir(parents=True, exist_ok=True)
        return file

    first = state_of("first")
    before = first.read(None, takes_sweeps_id=True)
    assert before.run_id == "abc123"
    first.write(before.run_id, 3, None, first.path.parent / "piece", closed=True)
    # An inference, and another training from the same shell.
    assert state_of("first/predictions").read(None, takes_sweeps_id=False).run_id != "abc123"
    assert state_of("second").read(None, takes_sweeps_id=True).run_id != "abc123"
    assert "$WANDB_RUN_ID abc123 is already the id of" in capsys.readouterr().err
    assert first.read(None, takes_sweeps_id=True).run_id == "abc123"
