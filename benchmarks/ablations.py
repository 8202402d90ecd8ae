"""Shrinks the results of `gdpo-sr ablate` to what is committed: the numbers behind docs/ablations.

    gdpo-sr ablate && python benchmarks/ablations.py

Reads reports/ablate/results.json; writes benchmarks/results/ablations.json with four significant
digits. For each table, row and column of the paper it keeps our mean (`ours`), and the differences
as [mean, low, high] with their 95 % interval. What follows from these numbers and from the paper's
(signs, stand-ins, agreement) is left out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from gdpo.files import written_aside
from tasks import paths

REPO = Path(__file__).resolve().parents[1]
RESULT = REPO / "benchmarks/results/ablations.json"
DIFFERENCES = ("to_naosd", "to_control", "to_gdpo", "beyond_controls_to_gdpo")


def main() -> int:
    """Write the compact file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=REPO / f"{paths.ABLATED}/results.json")
    text = compact(json.loads(parser.parse_args().results.read_text(encoding="utf-8")))
    with written_aside(RESULT) as part:
        part.write_text(text, encoding="utf-8")
    return 0


def compact(results: dict[str, Any]) -> str:
    """The compact form as JSON, a line for each row of a table."""
    about = {key: value for key, value in results.items() if key != "tables"}
    lines = [f" {_short(key)}: {_short(value)}" for key, value in about.items()]
    tables = ",\n".join(f"  {_short(key)}: {_table(t)}" for key, t in results["tables"].items())
    return "{\n" + ",\n".join([*lines, f' "tables": {{\n{tables}\n }}']) + "\n}\n"


def _table(table: dict[str, Any]) -> str:
    rows: dict[str, dict[str, Any]] = {}
    for record in table["records"]:
        if record["metric"] is not None:
            cell = {"ours": record["ours"]}
            for name in DIFFERENCES:
                if record.get(name):
                    cell[name] = [record[name][key] for key in ("mean", "low", "high")]
            rows.setdefault(record["row"], {})[record["column"]] = cell
    lines = [f'   "sentence": {_short(table["sentence"])}']
    lines += [f"   {_short(row)}: {_short(cells)}" for row, cells in rows.items()]
    if table["claims"]:
        claims = [
            [claim[key] for key in ("row", "claim", "of", "mean", "low", "high", "sign")]
            for claim in table["claims"]
        ]
        lines.append(f'   "claims": {_short(claims)}')
    return "{\n" + ",\n".join(lines) + "\n  }"


def _short(value: Any) -> str:
    """JSON without blanks, its numbers with four significant digits."""
    plain = json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.4g}"))
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    raise SystemExit(main())
