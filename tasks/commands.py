"""The commands: one literal row for each stage of dvc.yaml and each tool for people.

The command line, the GPU check, the pipeline flow and the tests read these rows, and nothing else
says what a stage is. No import of ours here, so that `gdpo-sr --help` is quick.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The option that names one of a stage's outputs; dvc.yaml runs the stage once for each.

    values: the names that are allowed, the default first; () means that the stage checks the name
    itself and takes all of them, or the first, by default.
    """

    option: str
    help: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A stage: `module` has run(config, root, hooks[, name of the choice]) -> None.

    example: the --set of its help. needs_gpu: its models need a GPU at full size; `allow_cpu` lets
    it run without. trains: its section of params.yaml has `steps` and `batch`, it logs every step
    to metrics.jsonl and to the tracker. compares: `--against RUN` is offered.
    """

    module: str
    help: str
    example: str
    choice: Choice | None = None
    needs_gpu: bool = False
    trains: bool = False
    compares: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool: `module` has EXAMPLE, add_arguments(parser) -> None and main(args) -> int."""

    module: str
    help: str


STAGES = {
    "index": Stage(
        "tasks.stages.index",
        "find the photographs that can be used, share them out",
        "degrade.parts=[a,b]",
    ),
    "degrade": Stage(
        "tasks.stages.degrade",
        "photographs -> LR-HR pairs in Parquet shards",
        "degrade.shard_mb=8.0",
        choice=Choice("part", "one of degrade.parts, or evaluation; default: all of them"),
    ),
    "pretrain": Stage(
        "tasks.stages.pretrain",
        "train NAOSD: LoRA on UNet and VAE encoder",
        "pretrain.steps=10",
        needs_gpu=True,
        trains=True,
    ),
    "select": Stage(
        "tasks.stages.select",
        "choose the patches worth a rollout",
        "select.count=64",
        needs_gpu=True,
    ),
    "rollout": Stage(
        "tasks.stages.rollout",
        "make and score G candidates per LR image",
        "rollout.group=4",
        choice=Choice("part", "one of rollout.parts; default: all of them"),
        needs_gpu=True,
    ),
    "finetune": Stage(
        "tasks.stages.finetune",
        "GDPO on the rollouts, or its shuffled control",
        "finetune.omega=5000.0",
        choice=Choice(
            "run", "control: advantages shuffled inside each group", values=("gdpo", "control")
        ),
        needs_gpu=True,
        trains=True,
    ),
    "evaluate": Stage(
        "tasks.stages.evaluate",
        "compare the models on held-out photographs",
        "evaluate.noises=16",
        choice=Choice("benchmark", "sample, or one of evaluate.pairs; default: the first"),
        needs_gpu=True,
        compares=True,
    ),
    "report": Stage("tasks.stages.report", "write reports/index.html", "seed=0"),
}

TOOLS = {
    "upscale": Tool("tasks.tools.upscale", "super-resolve a photograph x4"),
    "score": Tool("tasks.tools.score", "score a folder of images against references"),
    "import-weights": Tool(
        "tasks.tools.import_weights", "released .pkl files or merged folders -> a model folder"
    ),
    "export": Tool("tasks.tools.export", "a model folder -> merged diffusers folder, or LoRA file"),
    "cost": Tool("tasks.tools.cost", "count parameters and MACs of a model"),
    "fetch": Tool("tasks.tools.fetch", "the base model, from the first source that has it"),
    "doctor": Tool("tasks.tools.doctor", "check that this machine has what a profile needs"),
    "prior": Tool("tasks.tools.prior", "train the tiny prior that ships in assets/tiny-sd"),
    "summary": Tool("tasks.report.summary", "print the table of the last evaluation"),
    "ablate": Tool(
        "tasks.tools.ablate", "run the paper's ablations, every row beside its shuffled control"
    ),
    "tables": Tool(
        "tasks.report.paper_tables",
        "print or write the paper's tables, our figures beside the paper's",
    ),
    "promote": Tool("tasks.publish.promote", "make a published run the promoted one"),
    "browse": Tool(
        "tasks.publish.browse", "look through the published runs and models in a browser"
    ),
    "profile": Tool(
        "tasks.tools.profile", "write the values of profiles/NAME.yaml into params.yaml"
    ),
}
