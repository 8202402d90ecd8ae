"""Every file below a folder, linked folders included; the only walk over a folder tree.

    walk(folder).files      sorted by path; each real folder is read once, however many links lead
                            to it, so that a loop ends

`Path.rglob` enters no linked folder and passes over a folder that it may not read, without a word.
"""

import heapq
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tree:
    """The content of a folder tree, each list sorted.

    files: files and links to files. broken: links that lead nowhere. repeated: linked folders that
    were not entered, with the folder of the tree that they lead to.
    """

    files: list[Path]
    broken: list[Path]
    repeated: dict[Path, Path]


def walk(folder: Path) -> Tree:
    """The tree below `folder`, which may be a link itself.

    A folder inside the tree is read under its own path, and a link to it is `repeated`; a folder
    outside is read below the first link to it, in the order of paths. So a new link changes no
    path of a file that was there. Errors: OSError naming a folder that cannot be read.
    """
    files, broken, repeated = list[Path](), list[Path](), dict[Path, Path]()
    read: dict[tuple[int, int], Path] = {}
    folders, links = [folder], list[Path]()
    while folders or links:
        current = folders.pop() if folders else heapq.heappop(links)
        status = current.stat()
        place = (status.st_dev, status.st_ino)
        if place in read:
            repeated[current] = read[place]
            continue
        read[place] = current
        with os.scandir(current) as entries:
            for entry in entries:
                path = current / entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif os.path.isdir(path):
                    heapq.heappush(links, path)
                elif os.path.isfile(path):
                    files.append(path)
                elif entry.is_symlink() and not os.path.exists(path):
                    broken.append(path)
    return Tree(sorted(files), sorted(broken), dict(sorted(repeated.items())))


def is_hidden(path: Path, below: Path) -> bool:
    """Whether a name of `path` below the folder `below` begins with a dot.

    Such are the leftovers of killed writers, and the files that desktops write.
    """
    return any(name.startswith(".") for name in path.relative_to(below).parts)
