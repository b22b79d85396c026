"""`--profile N`: a trace of N training steps and a table of where their time went."""

from pathlib import Path
from types import TracebackType
from typing import Self

from torch.profiler import ProfilerActivity, profile

from segdist.core.terminal import say
from segdist.ranks.process_group import Ranks


class Profile:
    """Profiles the first `steps` steps on rank 0; does nothing for 0.

    Writes `profile/trace.json` (for chrome://tracing and Perfetto) and `profile/table.txt`.
    """

    def __init__(self, steps: int, folder: Path, ranks: Ranks) -> None:
        self.folder = folder / "profile"
        self._left = steps if ranks.is_main else 0
        self._device = ranks.device.type
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        if self._left:
            activities = [ProfilerActivity.CPU]
            if self._device == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.__enter__()
        return self

    def step(self) -> None:
        """Count one more finished step."""
        if self._profile is None:
            return
        self._left -= 1
        if self._left == 0:
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._write()

    def _write(self) -> None:
        assert self._profile is not None
        taken, self._profile = self._profile, None
        taken.__exit__(None, None, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        taken.export_chrome_trace(str(self.folder / "trace.json"))
        table = taken.key_averages().table(sort_by=f"self_{self._device}_time_total", row_limit=25)
        (self.folder / "table.txt").write_text(table)
        say(f"profile: {self.folder / 'trace.json'} (open in Perfetto), {self.folder / 'table.txt'}")
