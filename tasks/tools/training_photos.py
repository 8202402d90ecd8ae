"""The photographs that the shipped models are trained on: what `prior` and `tiny-vlcot` share."""

from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Choices are made on the first and figures on the second: a model trained on them would be
# evaluated on what it has seen.
VALIDATION, KODAK = "assets/photos/validation", "assets/photos/kodak"
GREY_EVERY = 16


def link_with_grey_copies(folder: Path, photos: Sequence[Path]) -> None:
    """Link the photographs into `folder`, and write a grey copy of every `GREY_EVERY`-th.

    Trained on colour alone, a small model would tint grey photographs.
    """
    # Not above: `gdpo-sr prior --help` reads this module for its defaults.
    import cv2

    from gdpo.images import read_photo

    folder.mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(photos):
        (folder / path.name).unlink(missing_ok=True)
        (folder / path.name).symlink_to(path.resolve())
        if i % GREY_EVERY == 0:
            grey = cv2.cvtColor(read_photo(path), cv2.COLOR_RGB2GRAY)
            cv2.imwrite(str(folder / f"grey-{path.stem}.png"), grey)
