"""Ready-made LR-HR pairs (RealSR, DRealSR, DIV2K-val, ...): two folders of images.

    pairs = BenchmarkPairs.checked("realsr", lr, hr, baselines)     reads every file once; one error
                                                                    lists all problems
    pairs[i]                  the pair as a `Pair`; its id is the name without the suffix
    pairs.baseline_outputs(i) {method: its output for the pair}, uint8, of the HR image's size

Images are paired by name without the suffix. Rule for sizes: the LR image is enlarged bicubically
to the size of the HR image, by any factor: 4 as in training, more for a smaller LR image, 1 (no
change) for an LR image that is enlarged already. Both sides must grow by the same factor of 1 or
more, to within a pixel of the HR image (half the factor, if larger).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gdpo.data.shards import Box, Pair
from gdpo.images import read_photo, to_tensor
from gdpo.metrics.folders import images_by_name
from gdpo.rewards.detail import PIPELINE_GRAYSCALE, detail_share


def fits(lr: tuple[int, int], hr: tuple[int, int]) -> bool:
    """Whether LR and HR sizes (height, width) satisfy the rule of the module docstring."""
    # The longer side, whose rounding to whole pixels changes the factor least.
    factor = max(hr) / max(lr)
    # Rounding the LR side to whole pixels may shift the enlarged side by half the factor.
    return factor >= 1 and all(
        abs(small * factor - large) <= max(1.0, factor / 2)
        for small, large in zip(lr, hr, strict=True)
    )


@dataclass(frozen=True)
class BenchmarkPairs:
    """The pairs of one benchmark in order of their names, and other methods' outputs for them."""

    ids: list[str]
    lr: Mapping[str, Path]
    hr: Mapping[str, Path]
    baselines: Mapping[str, Mapping[str, Path]]

    @classmethod
    def checked(
        cls, name: str, lr: Path, hr: Path, baselines: Mapping[str, Path], min_side: int = 1
    ) -> "BenchmarkPairs":
        """Open the folders and read every image once.

        One-line ValueError naming every image that has no partner, is unreadable, does not fit its
        HR image, or has a side below `min_side` pixels (which the metrics need).
        """
        folders = {method: images_by_name(folder) for method, folder in baselines.items()}
        unchecked = cls([], images_by_name(lr), images_by_name(hr), folders)
        # From all folders: an image that only one of them has is a problem to report, not to
        # skip.
        names = sorted(
            {
                *unchecked.hr,
                *unchecked.lr,
                *(image for outputs in folders.values() for image in outputs),
            }
        )
        problems = [problem for image in names for problem in unchecked._problems(image, min_side)]
        if problems:
            raise ValueError(f"benchmark {name}: {'; '.join(problems)}")
        return cls(names, unchecked.lr, unchecked.hr, unchecked.baselines)

    def _problems(self, image: str, min_side: int) -> Iterator[str]:
        """The problems with the files of one name, as error texts."""
        places = {"LR": self.lr, "HR": self.hr, **self.baselines}
        sizes: dict[str, tuple[int, int]] = {}
        for place, paths in places.items():
            if image not in paths:
                yield f"{image} has no {place} image"
                continue
            try:
                height, width = read_photo(paths[image]).shape[:2]
                sizes[place] = (height, width)
            except ValueError as error:
                yield str(error)
        if "HR" not in sizes:
            return
        hr = sizes.pop("HR")
        for place, size in sizes.items():
            if place == "LR" and not fits(size, hr):
                yield (
                    f"{self.lr[image]} is {_text(size)}, which does not enlarge to its HR image "
                    f"of {_text(hr)}"
                )
            if place != "LR" and size != hr:
                yield f"{places[place][image]} is {_text(size)}, its HR image {_text(hr)}"
        if min(hr) < min_side:
            yield f"{self.hr[image]} is {_text(hr)}, the metrics need sides of {min_side}"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Pair:
        """The pair, with the detail share of its HR image.

        Grayscale weights as in the shards ("released").
        """
        name = self.ids[index]
        hr = read_photo(self.hr[name])
        share = float(detail_share(to_tensor(hr)[None], PIPELINE_GRAYSCALE)[0])
        return Pair(name, name, Box(0, 0, *hr.shape[:2]), hr, read_photo(self.lr[name]), {}, share)

    def baseline_outputs(self, index: int) -> dict[str, np.ndarray]:
        """Every method's output for the pair."""
        return {
            method: read_photo(paths[self.ids[index]]) for method, paths in self.baselines.items()
        }


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
