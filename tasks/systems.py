"""The systems, GDPO-SR and RealSR-R1: one row each, and nothing else lists them.

The stages of a system are the rows of tasks/commands.py with its name. The kind of model that each
makes has its loader in gdpo/upscale/resolver.py. Nothing slow is imported here.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from tasks import paths

# The type of the flows' parameter `system`: Prefect checks the value by it and offers the names.
Name = Literal["gdpo", "vlcot"]


@dataclass(frozen=True)
class System:
    """A system, and where its stages leave what others read.

    title: of its stages in `gdpo-sr --help`. model: the folder of its model. reports: that of its
    report. evaluations: that of its evaluations, a folder for each benchmark. promoted: the scores
    of its promoted run, in git. pointer: the object in the bucket that names its promoted runs.
    trained_from: the first of its stages that the flow gdpo-train runs.
    """

    title: str
    model: str
    reports: str
    evaluations: str
    promoted: str
    pointer: str
    trained_from: str

    @property
    def report(self) -> str:
        """The first page of the report."""
        return f"{self.reports}/index.html"

    def has(self, out: str) -> bool:
        """Whether an output is part of a published run."""
        inside = PurePosixPath(out).is_relative_to(self.reports)
        return out == self.model or (inside and out != self.reports and ".." not in out.split("/"))


# The first is the default everywhere. A key of `SYSTEMS` is one of `Name`.
SYSTEMS = {
    "gdpo": System(
        title="the pipeline",
        model=paths.GDPO,
        reports=paths.REPORT_DIR,
        evaluations=paths.EVALUATED,
        promoted=paths.PROMOTED,
        pointer="models/latest.json",
        trained_from="finetune",
    ),
    "vlcot": System(
        title="RealSR-R1",
        model=f"{paths.VLCOT_MODELS}/vlcot",
        reports=paths.VLCOT_REPORTS,
        evaluations=paths.VLCOT_EVALUATED,
        promoted=f"{paths.PROMOTED}/vlcot",
        pointer="models/vlcot/latest.json",
        trained_from="vlcot-tokenizer",
    ),
}
