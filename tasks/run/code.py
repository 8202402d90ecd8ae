"""Which code a result comes from: the modules that a stage imports, and one hash of what they do.

    make code       # python -m tasks.run.code: rewrites code/<stage>.sha256, and states sections
                    # that are new in dvc.yaml in params.yaml

`code/<stage>.sha256` is the stage's only code dependency in dvc.yaml: DVC runs a stage again
when the code of any module that it imports, directly or through others, has changed. The hash is
one of syntax trees: comments, docstrings and formatting do not count.
"""

import ast
import hashlib
import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gdpo.files import written_aside

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("gdpo", "tasks")
STAGES = "tasks.stages"
# Modules left out of every hash, with the reason. A name covers everything below it.
LEFT_OUT = {
    "gdpo.config": "params.yaml states every key, and DVC compares the values themselves",
    "tasks.store": "S3: the place of a file does not change its content",
    "gdpo.tagger": "optional: only runs where model.tagger names a folder",
    "tasks.paths": "names of files: DVC compares a stage's dependencies and outputs",
    "tasks.systems": "names of files of each system, as tasks.paths",
    "tasks.run.code": "this module",
}
# Optional branches: (module, what it imports for them) -> the reason. A stage that imports the same
# elsewhere has it in its hash.
OPTIONAL = {
    ("gdpo.upscale.resolver", "gdpo.upscale.chains"): (
        "only runs where evaluate.models names a model of kind vlcot"
    ),
}


def closure(module: str, repository: Path = REPOSITORY) -> list[Path]:
    """The files of `module` and of all modules of ours that it imports, sorted by path.

    Errors: ValueError if there is no such module.
    """
    start = _file(module, repository)
    if start is None:
        raise ValueError(f"{module}: no such module below {repository}")
    files: set[Path] = set()
    waiting = {start}
    while waiting:
        file = waiting.pop()
        files.add(file)
        waiting |= set(_imported(file, repository)) - files
    return sorted(files)


def code_hash(module: str, repository: Path = REPOSITORY) -> str:
    """SHA-256 of the syntax trees of the closure of `module`, without docstrings."""
    return _hash(closure(module, repository), repository)


def stage_hashes(repository: Path = REPOSITORY) -> dict[str, str]:
    """{stage: hash of its code} for every module in tasks/stages."""
    folder = repository.joinpath(*STAGES.split("."))
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    return {name: code_hash(f"{STAGES}.{name}", repository) for name in names}


def write(repository: Path = REPOSITORY) -> None:
    """Rewrite code/<stage>.sha256 for every stage, and remove the files of stages that are gone."""
    hashes = stage_hashes(repository)
    for path in (repository / "code").glob("*.sha256"):
        if path.stem not in hashes:
            path.unlink()
    for name, value in hashes.items():
        path = repository / f"code/{name}.sha256"
        if not path.is_file() or path.read_text() != f"{value}\n":
            with written_aside(path) as part:
                part.write_text(f"{value}\n")


def state_sections(repository: Path = REPOSITORY) -> None:
    """Append the sections that dvc.yaml names and params.yaml lacks, with the defaults of `Config`:
    to params.yaml, to the parameters of the tests and to the paper's profile.

    DVC compares the values in params.yaml, so each has to be there. Errors: ValueError naming a
    section that `Config` does not have, or has without defaults.
    """
    from ruamel.yaml import YAML  # these are not for the stages, which import this module

    from tasks.params import load, read

    path = repository / "params.yaml"
    stages = read(repository / "dvc.yaml")["stages"].values()
    named = {key.partition(".")[0] for stage in stages for key in stage.get("params", [])}
    missing = sorted(named - read(path).keys())
    if not missing:
        return
    values = load(path).model_dump(mode="json")
    if unknown := [name for name in missing if name not in values]:
        raise ValueError(f"dvc.yaml: params: {unknown[0]} is no section of gdpo.config.Config")
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump({name: values[name] for name in missing}, text)
    for file in (path, repository / "tests/params.yaml", repository / "profiles/paper.yaml"):
        with written_aside(file) as part:
            part.write_text(f"{file.read_text(encoding='utf-8')}\n{text.getvalue()}", "utf-8")


def _hash(files: Iterable[Path], repository: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        # A file with a docstring only, such as most __init__.py, does nothing.
        if text := _read(file.read_bytes()).text:
            # With the path, because a module that moves is imported under another name and may
            # replace another.
            digest.update(f"{_name(file, repository)} {text}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Module:
    """names: of everything that the module imports. text: its syntax tree without docstrings, ""
    if that is empty.
    """

    names: frozenset[str]
    text: str


@cache  # the stages share most of their modules
def _read(content: bytes) -> _Module:
    tree, names = ast.parse(content), set[str]()
    # The whole tree and not its top level: imports inside functions run too.
    for node in ast.walk(tree):
        _drop_docstring(node)
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            # `from package import name` may import a module or a value; a name that is no file is
            # dropped later.
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return _Module(frozenset(names), _text(tree) if tree.body else "")


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if node.body and ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:]


def _text(node: object) -> str:
    """A syntax tree as text; empty fields are left out, since Python versions differ in them."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return f"{type(node).__name__}({', '.join(f'{name}={_text(v)}' for name, v in fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    return repr(node)


def _imported(file: Path, repository: Path) -> Iterator[Path]:
    importer = ".".join(file.relative_to(repository).with_suffix("").parts)
    for name in sorted(_read(file.read_bytes()).names):
        if name.split(".")[0] not in PACKAGES or _is_left_out(name, importer):
            continue
        path = _file(name, repository)
        if path is not None:
            yield path


def _is_left_out(name: str, importer: str) -> bool:
    places = [*LEFT_OUT, *(branch for module, branch in OPTIONAL if module == importer)]
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _file(name: str, repository: Path) -> Path | None:
    path = repository.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _name(path: Path, repository: Path) -> str:
    return path.relative_to(repository).as_posix()


if __name__ == "__main__":
    try:
        state_sections()
        write()
    except ValueError as error:
        sys.exit(str(error))
