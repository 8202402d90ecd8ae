"""Tool `tiny-vlcot`: trains the small RealSR-R1 that ships in assets/tiny-vlcot, from photographs.

    pairs       of the stages index and degrade; photographs of assets/photos that figures or
                choices rest on (kodak, validation) are left out by name
    model       of the stages vlcot-tokenizer, vlcot-data and vlcot-coldstart
                (profiles/tiny-vlcot.yaml), in half precision

Everything is kept in work/tiny-vlcot: a killed run resumes where it stopped, and a finished part is
not made again.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gdpo.config import Config
from gdpo.files import check_writable, shipped, written_aside
from gdpo.hooks import Hooks
from gdpo.walk import walk
from tasks import paths
from tasks.params import load
from tasks.tools.training_photos import KODAK, SUFFIXES, VALIDATION, link_with_grey_copies

EXAMPLE = "gdpo-sr tiny-vlcot photos/ -o assets/tiny-vlcot"
ROOT = Path(paths.WORK, "tiny-vlcot")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `gdpo-sr tiny-vlcot`."""
    parser.add_argument("photos", type=Path, help="a folder of photographs, sub-folders included")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("assets/tiny-vlcot"), help="default: %(default)s"
    )


def main(args: argparse.Namespace) -> int:
    """Train what is missing and write the model folder."""
    from tasks.run.recorder import Recorder  # torch: a second or more

    check_writable(args.output)
    photographs = training_photographs(args.photos)
    config = settings(ROOT / "photos")
    if not (ROOT / paths.PHOTOS).is_dir():
        link_with_grey_copies(ROOT / "photos", photographs)
    for name, output, run in _parts(config):
        if not (ROOT / output).is_dir():
            with Recorder(ROOT / "log" / name, name) as recorder:
                run(config, ROOT, Hooks(log=recorder.log))
    _write(args.output, config, photographs)
    return 0


def _write(output: Path, config: Config, photographs: list[Path]) -> None:
    """The cold start in half precision, with what it was made from."""
    from gdpo.vlcot.folder import IDENTITIES, Card, load_model, save_model, save_tokenizer

    model = load_model(ROOT / paths.COLDSTART)
    tokenizer = ROOT / "tokenizer-fp16"
    with written_aside(tokenizer) as part:
        model.tokenizer.vae.half()
        save_tokenizer(part, model.tokenizer)
    card = Card.of(IDENTITIES["coldstart"], config.vlcot, config.degrade.degradation.scale)
    save_model(output, card, model.trunk.half(), tokenizer)
    provenance = {
        "photographs": [path.name for path in photographs],
        "degrade": config.degrade.model_dump(include={"crop", "stride"}),
        "tokenizer": config.vlcot.tokenizer.model_dump(),
        "coldstart": config.coldstart.model_dump(),
        "seed": config.seed,
    }
    (output / "card.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")


def training_photographs(folder: Path) -> list[Path]:
    """The photographs below `folder`, by name, without the held-out ones of assets/photos.

    Errors: ValueError if there are none.
    """
    held_out = {path.name for name in (KODAK, VALIDATION) for path in walk(shipped(name)).files}
    photographs = {
        path.name: path for path in walk(folder).files if path.suffix.lower() in SUFFIXES
    }
    kept = [photographs[name] for name in sorted(photographs.keys() - held_out)]
    if not kept:
        raise ValueError(f"{folder}: no photographs here")
    return kept


def settings(photographs: Path) -> Config:
    """The values of profiles/tiny-vlcot.yaml, on a folder of photographs."""
    plain = load(Path("params.yaml"), profile="tiny-vlcot").model_dump()
    plain["degrade"]["train"] = [{"path": str(photographs.resolve())}]
    plain["degrade"]["evaluation"] = [{"path": str(shipped(VALIDATION).resolve())}]
    plain["model"]["base"] = str(shipped(plain["model"]["base"]).resolve())
    return Config.model_validate(plain)


def _parts(config: Config) -> list[tuple[str, str, Callable[[Config, Path, Hooks], None]]]:
    """(name, folder that it writes, function) of the stages, in order."""
    from tasks.stages import degrade, index, vlcot_coldstart, vlcot_data, vlcot_tokenizer

    return [
        ("index", paths.PHOTOS, index.run),
        *(
            (f"degrade-{part}", f"{paths.TRAIN}/{part}", partial(degrade.run, part=part))
            for part in config.degrade.parts
        ),
        ("evaluation", paths.HELD_OUT, partial(degrade.run, part="evaluation")),
        ("tokenizer", paths.TOKENIZER, vlcot_tokenizer.run),
        *(
            (f"data-{part}", f"{paths.CHAINS}/{part}", partial(vlcot_data.run, part=part))
            for part in config.degrade.parts
        ),
        ("coldstart", paths.COLDSTART, vlcot_coldstart.run),
    ]
