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


def test_imports_are_absolute(root: Path) -> None:
    """The other tests read absolute names only."""
    wrong = [
        f"{file.relative_to(root)}:{node.lineno}"
        for package in FORBIDDEN
        for file in files(root, package)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not wrong, "\n".join(wrong)


def test_only_these_modules_start_processes(root: Path) -> None:
    starters = [
        str(file.relative_to(root))
        for package in ("flows", "tasks")
        for file in files(root, package)
        if "subprocess" in dict(imports(ast.parse(file.read_text())))
    ]
    # dvc under a guard, the guard under a flow, `prefect deploy`, a stage's ranks
    assert starters == [
        "flows/dvc/guard.py",
        "flows/dvc/run.py",
        "flows/setup.py",
        "tasks/run/torchrun.py",
    ]


def test_the_core_does_not_print(root: Path) -> None:
    wrong = [
        f"{file.relative_to(root)}:{node.lineno}"
        for file in files(root, "gdpo")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("print", "input")
    ]
    assert not wrong, "\n".join(wrong)
