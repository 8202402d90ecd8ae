"""Who may import whom, read from the syntax trees: gdpo <- tasks <- flows, and what each must not
know.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FORBIDDEN = {
    "gdpo": {
        "tasks",
        "flows",
        "prefect",
        "dvc",
        "boto3",
        "great_expectations",
        "argparse",
        "yaml",
        "ruamel",
        "tqdm",
        "subprocess",
    },
    "tasks": {"flows", "prefect", "dvc", "yaml"},
    "flows": {"gdpo", "dvc", "yaml"},
}
# Slow to import: only inside the function that needs them (module level of these packages, and what
# it costs).
LAZY = {
    "gdpo": {"pyiqa"},
    "tasks": {"great_expectations", "pyiqa"},
    "flows": {"torch", "diffusers", "pyiqa"},
}


def files(root: Path, package: str) -> list[Path]:
    found = sorted((root / package).rglob("*.py"))
    assert found, f"no modules in {package}/"
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Top-level names of everything imported below `tree`, with line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_its_layer_may(root: Path, package: str) -> None:
    wrong = [
        f"{file.relative_to(root)}:{line} imports {name}"
        for file in files(root, package)
        for name, line in imports(ast.parse(file.read_text()))
        if name in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", LAZY)
def test_slow_packages_are_imported_inside_functions(root: Path, package: str) -> None:
    wrong = []
    for file in files(root, package):
        for statement in ast.parse(file.read_text()).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                wrong += [
                    f"{file.relative_to(root)}: {name}"
                    for name, _ in imports(statement)
                    if name in LAZY[package]
                ]
    assert not wrong, "\n".join(wrong)


def imported_modules(root: Path) -> dict[str, set[str]]:
    """Our modules and those of ours that each imports anywhere, functions included."""
    names = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for package in FORBIDDEN
        for file in files(root, package)
    }
    edges: dict[str, set[str]] = {}
    for name, file in names.items():
        used = edges[name] = set[str]()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        used &= names.keys() - {name}
    return edges


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The names that import each other in a circle; [] if there is none."""
    left = {name: set(used) for name, used in edges.items()}
    while True:
        free = {name for name, used in left.items() if not used & left.keys()}
        if not free:
            return sorted(left)
        left = {name: used for name, used in left.items() if name not in free}


def test_no_modules_and_no_folders_import_each_other(root: Path) -> None:
    modules = imported_modules(root)
    assert not circle(modules)
    folders: dict[str, set[str]] = {}
    for name, used in modules.items():
        place = ".".join(name.split(".")[:2])
        folders.setdefault(place, set()).update(".".join(other.split(".")[:2]) for other in used)
    del folders["gdpo"]  # its public names, each imported on first use
    assert not circle({place: used - {place} for place, used in folders.items()})
