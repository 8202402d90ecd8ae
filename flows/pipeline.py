"""The whole pipeline as a Prefect flow: every stage of dvc.yaml in order, each one `dvc repro --single-item STAGE`.

    python -m flows.pipeline        # with PREFECT_API_URL on that server; without, on a temporary one

Leaves a table artifact with the evaluation and a link to the report.
"""

import signal
import sys
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact

from flows.repro import StageFailed, repro, stages
from tasks import summary


@flow(name="gdpo-pipeline")
def pipeline(root: Path | None = None) -> None:
    """Run what is not up to date, then publish the results. root: the repository, by default the working folder."""
    root = (root or Path.cwd()).resolve()
    for stage in stages(root):
        repro(stage, root)
    publish(root)


def publish(root: Path) -> None:
    """The artifacts of the run, from the files the stages wrote."""
    table, verdict = summary.artifact(summary.read(root))
    create_table_artifact(key="gdpo-evaluation", table=table, description=verdict)
    create_link_artifact(key="gdpo-report", link=(root / summary.REPORT).as_uri(), link_text=str(summary.REPORT))


def main() -> int:
    """Run the flow here and return the exit code."""
    # By default SIGTERM would end this process alone and leave the stage's behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        pipeline()
    except StageFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
