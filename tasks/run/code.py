"""Which code a result comes from: the modules that a stage imports, and one hash of what they do.

    make code       # python -m tasks.run.code: rewrites code/<stage>.sha256

`code/<stage>.sha256` is the stage's only code dependency in dvc.yaml: DVC runs a stage again
when the code of any module that it imports, directly or through others, has changed. The hash is
one of syntax trees: comments, docstrings and formatting do not count.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from dulwich.errors import NotGitRepository
from dulwich.object_store import iter_tree_contents
from dulwich.objects import Blob, Commit
from dulwich.repo import Repo

from gdpo.files import written_aside

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("gdpo", "tasks")
STAGES = "tasks.stages"
UNKNOWN = "unknown"
# Modules left out of every hash, with the reason. A name covers everything below it.
LEFT_OUT = {
    "gdpo.config": "params.yaml states every key, and DVC compares the values themselves",
    "gdpo.fields": "types of the keys of gdpo.config",
    "tasks.store": "S3: where bytes lie changes no byte",
    "gdpo.tagger": "optional: only runs where model.tagger names a folder",
    "tasks.run.code": "this module",
}


def closure(module: str, repository: Path = REPOSITORY) -> list[Path]:
    """The files of ours that `module` imports anywhere, itself first in line, sorted by path.

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


def commit(module: str, repository: Path = REPOSITORY) -> str:
    """The last commit that changed the closure of `module`, `+changes` if files of it differ.

    Not the commit that is checked out: results committed with their hashes (dvc.lock) could then
    never be made again with the same bytes. `unknown` outside a git checkout.
    """
    files = closure(module, repository)
    present = {_name(path, repository).encode(): path for path in files}
    try:
        with Repo(str(repository)) as repo:
            walker = repo.get_walker(paths=list(present), max_entries=1)
            last = next(iter(walker), None)
            if last is None:
                return UNKNOWN
            head = repo[repo.head()]
            assert isinstance(head, Commit)
            committed = {
                entry.path: entry.sha for entry in iter_tree_contents(repo.object_store, head.tree)
            }
            changed = any(
                committed.get(name) != Blob.from_string(path.read_bytes()).id
                for name, path in present.items()
            )
            return last.commit.id.decode() + ("+changes" if changed else "")
    # KeyError: a history that is not here (a shallow clone), or no commit yet.
    except (NotGitRepository, KeyError, OSError):
        return UNKNOWN


def _hash(files: Iterable[Path], repository: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            _drop_docstring(node)
        if tree.body:
            digest.update(f"{_name(file, repository)} {_text(tree)}\n".encode())
    return digest.hexdigest()


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
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    for name in sorted(names):
        if name.split(".")[0] not in PACKAGES or _is_left_out(name):
            continue
        path = _file(name, repository)
        if path is not None:
            yield path


def _is_left_out(name: str) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in LEFT_OUT)


def _file(name: str, repository: Path) -> Path | None:
    path = repository.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _name(path: Path, repository: Path) -> str:
    return path.relative_to(repository).as_posix()


if __name__ == "__main__":
    write()
