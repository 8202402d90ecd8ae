"""Reading the results of an evaluated benchmark, without importing torch.

summary.json       means, standard errors, paired differences (tasks/files/evaluation.py)
candidates.json    groups of the reference's outputs, as training scores them
per_image.parquet  tasks/files/scores.py
"""

import json
from pathlib import Path
from typing import Any

SUMMARY, CANDIDATES = "summary.json", "candidates.json"


def read_summary(folder: str | Path, root: Path = Path()) -> dict[str, Any]:
    """The summary of the results in `folder`, relative to `root`, or of a file that is named.

    Errors: ValueError naming the file that is missing or damaged.
    """
    content: dict[str, Any] = _read(_file(folder, SUMMARY), root)
    return content


def read_candidates(folder: str | Path, root: Path = Path()) -> list[dict[str, Any]]:
    """The groups of candidates in `folder`. Errors: as `read_summary`."""
    content: list[dict[str, Any]] = _read(_file(folder, CANDIDATES), root)
    return content


def _file(folder: str | Path, name: str) -> Path:
    return Path(folder) if str(folder).endswith(".json") else Path(folder, name)


def _read(file: Path, root: Path) -> Any:
    try:
        return json.loads((root / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file yet; `dvc repro` writes it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not JSON ({error}); `dvc checkout` restores it") from error
