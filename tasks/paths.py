"""Where the stages keep their files: every name below data/, models/, reports/ and work/, once.
By system: tasks/systems.py.

All are relative to the root of a run. A stage with parts, runs or benchmarks has a folder for each
below its own. What is in the files: docs/architecture.md.
"""

from pathlib import Path

MODEL_DIR = "models"
NAOSD = f"{MODEL_DIR}/naosd"
GDPO = f"{MODEL_DIR}/gdpo"
# The trainings of `finetune`, each a folder of MODEL_DIR and FINETUNED; the default first.
FINETUNE_RUNS = ("gdpo", "control")

PHOTOS = "data/photos"
SHARDS = "data/shards"
TRAIN = f"{SHARDS}/train"
HELD_OUT = f"{SHARDS}/evaluation"
SELECTED = "data/selected"
ROLLOUTS = "data/rollouts"

REPORT_DIR = "reports"
INDEX = f"{REPORT_DIR}/index.html"
PAGES = f"{REPORT_DIR}/pages"
ASSETS = f"{REPORT_DIR}/assets"
PHOTOGRAPHS = f"{REPORT_DIR}/photographs"
DEGRADED = f"{REPORT_DIR}/degrade"
PRETRAINED = f"{REPORT_DIR}/pretrain"
FINETUNED = f"{REPORT_DIR}/finetune"
EVALUATED = f"{REPORT_DIR}/evaluate"
DATA_DOCS = f"{REPORT_DIR}/data-docs"
AGAINST = f"{REPORT_DIR}/against"  # `evaluate --against`
ABLATED = f"{REPORT_DIR}/ablate"  # `gdpo-sr ablate`

# RealSR-R1
CHAINS = "data/vlcot"
VLCOT_MODELS = f"{MODEL_DIR}/vlcot"
TOKENIZER = f"{VLCOT_MODELS}/tokenizer"
COLDSTART = f"{VLCOT_MODELS}/coldstart"
VLCOT_REPORTS = f"{REPORT_DIR}/vlcot"
COLDSTART_REPORTS = f"{VLCOT_REPORTS}/coldstart"
GRPO_REPORTS = f"{VLCOT_REPORTS}/grpo"
GRPO_RUNS = ("vlcot", "control")  # of VLCOT_MODELS and GRPO_REPORTS
VLCOT_EVALUATED = f"{VLCOT_REPORTS}/evaluate"

SYSTEMS = f"{REPORT_DIR}/systems"  # both systems side by side
PROMOTED = "promoted"  # scores of promoted runs, in git (`gdpo-sr promote`)

# Names of files that several stages write, each into a folder of its own.
STEP_VALUES = "metrics.jsonl"  # of a training: one JSON object per step
STAGE_REPORT = "report.json"  # counts and reasons, for the report

# In the bucket (tasks/publish/): the pages that a reader opens first.
RUNS_PAGE = "runs/index.html"
MODELS_PAGE = "models/index.html"

# No stage's output: DVC deletes a stage's outputs before it runs the stage, and a checkpoint has to
# survive that.
WORK = "work"


def photo_list(part: str) -> str:
    """The file that lists the photographs of a part of `degrade`; `*`: the files of all parts."""
    return f"{PHOTOS}/{part}.parquet"


def work(root: Path, command: str, *names: str) -> Path:
    """The folder of a command's unfinished work. names: part, run or benchmark."""
    return root.joinpath(WORK, command, *names)
