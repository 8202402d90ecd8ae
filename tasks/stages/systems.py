"""Stage `systems`: reports/systems, a page that shows GDPO-SR and RealSR-R1 side by side.

    python -m tasks systems

For each of evaluate.benchmarks one table of all models, the paired differences between the systems
and a row of pictures per photograph (tasks/report/systems.py). Reads the evaluations of both.
Equal inputs give equal bytes; names are HTML-escaped.
"""

from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.files import written_aside
from gdpo.hooks import Hooks
from tasks import paths
from tasks.report import systems
from tasks.report.benchmark_page import html_of
from tasks.report.html import copy_assets, environment


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write the page. Errors: ValueError naming a missing input, or what the evaluations do not
    share.
    """
    with written_aside(root / paths.SYSTEMS) as out:
        assets = out / "assets"
        assets.mkdir(parents=True)
        copy_assets(assets)
        benchmarks = [_benchmark(root, assets, name) for name in config.evaluate.benchmarks]
        text = (
            environment()
            .get_template("systems.html")
            .render(title="GDPO-SR and RealSR-R1", benchmarks=benchmarks, name="", menu=[], base="")
        )
        (out / "index.html").write_bytes(text.encode("utf-8", "replace"))


def _benchmark(root: Path, assets: Path, name: str) -> dict[str, Any]:
    joint = systems.joint(root, name)
    return {
        "name": name,
        "scores": html_of(systems.scores_table(joint)),
        "differences": html_of(systems.paired_table(joint)),
        "rows": systems.rows(root, joint, assets),
    }
