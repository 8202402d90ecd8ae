"""What a profile needs and a stage does not make: one row of what `doctor` lists."""

from dataclasses import dataclass

FOUND, MISSING, BAD, UNUSED = "found", "MISSING", "BAD", "not used"


@dataclass(frozen=True)
class Artefact:
    """One file or folder: which key asks for it, its state, bytes (expected ones if it is not
    there), licence, origin.
    """

    needed_by: str
    path: str
    state: str
    size: int
    licence: str
    where: str
    problem: str = ""
