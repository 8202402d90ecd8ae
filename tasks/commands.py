"""The commands: one literal row for each stage of dvc.yaml and each tool for people.

The command line, the GPU check, the pipeline flow and the tests read these rows, and nothing else
says what a stage is. Nothing slow is imported here, so that `gdpo-sr --help` is quick.
"""

from dataclasses import dataclass
from typing import Any

from tasks import paths
from tasks.systems import SYSTEMS


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

    example: the --set of its help. writes: its outputs in dvc.yaml, `{}` for the value of its
    choice. needs_gpu: its models need a GPU at full size; `allow_cpu` lets it run without. trains:
    the section of params.yaml, with dots for a section in a section, that has its `steps` and
    `batch`; every step is logged to metrics.jsonl and to the tracker. shares_steps: the section has
    `gpus` too, and that many processes share each step. compares: `--against RUN` is offered.
    system: a key of `SYSTEMS`, or `BOTH`; `make demo` and the pipeline flow run the first.
    """

    module: str
    help: str
    example: str
    writes: tuple[str, ...]
    choice: Choice | None = None
    needs_gpu: bool = False
    trains: str = ""
    shares_steps: bool = False
    compares: bool = False
    system: str = "gdpo"


@dataclass(frozen=True)
class Tool:
    """A tool: `module` has EXAMPLE, add_arguments(parser) -> None and main(args) -> int.

    group: its heading in `gdpo-sr --help`.
    """

    module: str
    help: str
    group: str


BOTH = "both"  # of a stage that reads the results of all systems
STAGES = {
    "index": Stage(
        "tasks.stages.index",
        "list the usable photographs, split into parts",
        "degrade.parts=[a,b]",
        writes=(paths.PHOTOS, paths.PHOTOGRAPHS),
    ),
    "degrade": Stage(
        "tasks.stages.degrade",
        "photographs -> LR-HR pairs in Parquet shards",
        "degrade.shard_mb=8.0",
        writes=(
            f"{paths.TRAIN}/{{}}",
            paths.HELD_OUT,
            f"{paths.DEGRADED}/{{}}",
            f"{paths.DATA_DOCS}/degrade/{{}}",
        ),
        choice=Choice("part", "one of degrade.parts, or evaluation; default: all of them"),
    ),
    "pretrain": Stage(
        "tasks.stages.pretrain",
        "train NAOSD: LoRA on UNet and VAE encoder",
        "pretrain.steps=10",
        writes=(paths.NAOSD, paths.PRETRAINED),
        needs_gpu=True,
        trains="pretrain",
        shares_steps=True,
    ),
    "select": Stage(
        "tasks.stages.select",
        "select training patches for the rollouts",
        "select.count=64",
        writes=(paths.SELECTED, f"{paths.DATA_DOCS}/select"),
        needs_gpu=True,
    ),
    "rollout": Stage(
        "tasks.stages.rollout",
        "sample and score G candidates per LR image",
        "rollout.group=4",
        writes=(f"{paths.ROLLOUTS}/{{}}", f"{paths.DATA_DOCS}/rollout/{{}}"),
        choice=Choice("part", "one of rollout.parts; default: all of them"),
        needs_gpu=True,
    ),
    "finetune": Stage(
        "tasks.stages.finetune",
        "GDPO on the rollouts, or its shuffled control",
        "finetune.omega=5000.0",
        writes=(f"{paths.MODEL_DIR}/{{}}", f"{paths.FINETUNED}/{{}}"),
        choice=Choice(
            "run", "control: advantages shuffled inside each group", values=paths.FINETUNE_RUNS
        ),
        needs_gpu=True,
        trains="finetune",
        shares_steps=True,
    ),
    "evaluate": Stage(
        "tasks.stages.evaluate",
        "compare the models on held-out photographs",
        "evaluate.noises=16",
        writes=(f"{paths.EVALUATED}/{{}}",),
        choice=Choice("benchmark", "sample, or one of evaluate.pairs; default: the first"),
        needs_gpu=True,
        compares=True,
    ),
    "report": Stage(
        "tasks.stages.report",
        f"write {paths.INDEX}",
        "seed=0",
        writes=(paths.INDEX, paths.PAGES, paths.ASSETS),
    ),
    "vlcot-tokenizer": Stage(
        "tasks.stages.vlcot_tokenizer",
        "RealSR-R1: fit image codes, tune their decoder",
        "vlcot.tokenizer.codes=256",
        writes=(paths.TOKENIZER, f"{paths.VLCOT_REPORTS}/tokenizer"),
        needs_gpu=True,
        trains="vlcot.tokenizer",
        system="vlcot",
    ),
    "vlcot-data": Stage(
        "tasks.stages.vlcot_data",
        "RealSR-R1: training pairs -> chains of thought as tokens",
        "vlcot.ranges=real_esrgan",
        writes=(f"{paths.CHAINS}/{{}}",),
        choice=Choice("part", "one of degrade.parts; default: all of them"),
        needs_gpu=True,
        system="vlcot",
    ),
    "vlcot-coldstart": Stage(
        "tasks.stages.vlcot_coldstart",
        "RealSR-R1: supervised training on chains of thought",
        "coldstart.steps=10",
        writes=(paths.COLDSTART, paths.COLDSTART_REPORTS),
        needs_gpu=True,
        trains="coldstart",
        system="vlcot",
    ),
    "vlcot-grpo": Stage(
        "tasks.stages.vlcot_grpo",
        "RealSR-R1: GRPO with four rewards, or its shuffled control",
        "grpo.steps=10",
        writes=(f"{paths.VLCOT_MODELS}/{{}}", f"{paths.GRPO_REPORTS}/{{}}"),
        choice=Choice(
            "run", "control: advantages shuffled inside each group", values=paths.GRPO_RUNS
        ),
        needs_gpu=True,
        trains="grpo",
        system="vlcot",
    ),
    "vlcot-evaluate": Stage(
        "tasks.stages.vlcot_evaluate",
        "RealSR-R1: compare its models on held-out photographs",
        "vlcot.noises=4",
        writes=(f"{paths.VLCOT_EVALUATED}/{{}}",),
        choice=Choice("benchmark", "one of evaluate.benchmarks; default: the first"),
        needs_gpu=True,
        compares=True,
        system="vlcot",
    ),
    "vlcot-report": Stage(
        "tasks.stages.vlcot_report",
        f"RealSR-R1: write {paths.VLCOT_REPORTS}/index.html",
        "seed=0",
        writes=(f"{paths.VLCOT_REPORTS}/index.html", f"{paths.VLCOT_REPORTS}/assets"),
        needs_gpu=True,
        system="vlcot",
    ),
    "systems": Stage(
        "tasks.stages.systems",
        f"both systems side by side: write {paths.SYSTEMS}/index.html",
        "evaluate.benchmarks=[sample]",
        writes=(paths.SYSTEMS,),
        system=BOTH,
    ),
}


def section_of(config: Any, command: str) -> Any:
    """The section of the parameters that a training stage takes its steps from."""
    section = config
    for name in STAGES[command].trains.split("."):
        section = getattr(section, name)
    return section


def gpus_of(config: Any, command: str) -> int:
    """The GPUs that a stage asks for on a host."""
    return int(section_of(config, command).gpus) if STAGES[command].shares_steps else 1


def nodes_of(config: Any, command: str) -> int:
    """The hosts that a stage runs on at once."""
    return int(section_of(config, command).nodes) if STAGES[command].shares_steps else 1


def trained_stages(system: str) -> tuple[str, ...]:
    """The stages that gdpo-train runs, in their order."""
    own = [name for name, stage in STAGES.items() if stage.system == system]
    return tuple(own[own.index(SYSTEMS[system].trained_from) :])


def evaluation_stages(system: str) -> tuple[str, ...]:
    """The stages that gdpo-evaluate runs: those that evaluate, and the one that reports."""
    own = {name: stage for name, stage in STAGES.items() if stage.system == system}
    return (*(name for name, stage in own.items() if stage.compares), reporter(system))


def reporter(system: str) -> str:
    """The stage that writes the first page of a system's report."""
    return next(name for name, stage in STAGES.items() if SYSTEMS[system].report in stage.writes)


def command_of(stage: str) -> str:
    """The command of a stage of dvc.yaml: degrade of degrade-evaluation, rollout of rollout@00."""
    name = stage.partition("@")[0]
    return name if name in STAGES else name.partition("-")[0]


MODELS, MACHINE, RESULTS = "use a model", "prepare this machine", "look at results"
TOOLS = {
    "upscale": Tool("tasks.tools.upscale", "super-resolve a photograph x4", MODELS),
    "app": Tool("tasks.app.command", "a page in the browser that does the same", MODELS),
    "score": Tool("tasks.tools.score", "score a folder of images against references", MODELS),
    "import-weights": Tool(
        "tasks.tools.import_weights",
        "released .pkl files or merged folders -> a model folder",
        MODELS,
    ),
    "export": Tool(
        "tasks.tools.export", "a model folder -> a pipeline of diffusers, or a LoRA", MODELS
    ),
    "push-to-hub": Tool(
        "tasks.tools.push_to_hub", "put a model on the Hugging Face hub, with a card", MODELS
    ),
    "cost": Tool("tasks.tools.cost", "count parameters and MACs of a model", MACHINE),
    "fetch": Tool(
        "tasks.tools.fetch", "download the base model from the first source that has it", MACHINE
    ),
    "doctor": Tool(
        "tasks.tools.doctor", "check that this machine has what a profile needs", MACHINE
    ),
    "prior": Tool(
        "tasks.tools.prior_command", "train the tiny prior that ships in assets/tiny-sd", MACHINE
    ),
    "tiny-vlcot": Tool(
        "tasks.tools.tiny_vlcot",
        "train the small RealSR-R1 that ships in assets/tiny-vlcot",
        MACHINE,
    ),
    "profile": Tool(
        "tasks.tools.profile", "write the values of profiles/NAME.yaml into params.yaml", MACHINE
    ),
    "summary": Tool("tasks.tools.summary", "print the table of the last evaluation", RESULTS),
    "ablate": Tool(
        "tasks.tools.ablate",
        "run the paper's ablations, every row beside its shuffled control",
        RESULTS,
    ),
    "tables": Tool(
        "tasks.tools.tables",
        "print or write the paper's tables, our figures beside the paper's",
        RESULTS,
    ),
    "promote": Tool("tasks.publish.promote", "make a published run the promoted one", RESULTS),
    "browse": Tool(
        "tasks.publish.browse", "look through the published runs and models in a browser", RESULTS
    ),
}


def commands_by_heading() -> dict[str, dict[str, str]]:
    """The commands and what they do, by the headings of `gdpo-sr --help`."""
    by_group: dict[str, dict[str, str]] = {}
    for name, tool in TOOLS.items():
        by_group.setdefault(tool.group, {})[name] = tool.help
    for name, stage in STAGES.items():
        title = SYSTEMS[stage.system].title if stage.system in SYSTEMS else "both systems"
        heading = f"stages of {title}, in their order"
        by_group.setdefault(heading, {})[name] = stage.help
    return by_group
