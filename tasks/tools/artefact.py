"""A row in the output of `doctor`: a file or folder that a profile needs and no stage makes."""

from dataclasses import dataclass

FOUND, MISSING, BAD, UNUSED = "found", "MISSING", "BAD", "not used"


@dataclass(frozen=True)
class Artefact:
    """One file or folder.

    needed_by: the key that asks for it. size: in bytes; the expected size if it is missing.
    where: its origin.
    """

    needed_by: str
    path: str
    state: str
    size: int
    licence: str
    where: str
    problem: str = ""
