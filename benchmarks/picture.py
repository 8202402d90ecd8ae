"""The picture of the README: bicubic | NAOSD | GDPO-SR | HR for held-out photographs of the last
evaluation.

python benchmarks/picture.py        # reads reports/evaluate/sample, writes docs/picture.webp
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tasks import paths
from tasks.files.results import read_summary

REPO = Path(__file__).resolve().parents[1]
COLUMNS = {"bicubic": "LR, bicubic x4", "naosd": "NAOSD", "gdpo": "GDPO-SR", "hr": "HR"}
SHOWN = ("kodim21-00", "kodim23-00", "kodim07-00")
ZOOM, GAP, HEAD = 1, 8, 28


def main() -> None:
    """Draw and write the picture."""
    folder = REPO / paths.EVALUATED / "sample"
    files = {entry["id"]: entry for entry in read_summary(folder)["files"]}
    side = next(iter(files.values()))["height"] * ZOOM
    width, height = len(COLUMNS) * (side + GAP) - GAP, HEAD + len(SHOWN) * (side + GAP) - GAP
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(20)
    for column, (name, title) in enumerate(COLUMNS.items()):
        pen.text(
            (column * (side + GAP) + side // 2, HEAD // 2),
            title,
            fill="black",
            font=font,
            anchor="mm",
        )
        for row, image in enumerate(SHOWN):
            tile = Image.open(folder / "images" / files[image]["folder"] / f"{name}.png")
            at = (column * (side + GAP), HEAD + row * (side + GAP))
            canvas.paste(tile.resize((side, side), Image.Resampling.NEAREST), at)
    canvas.save(REPO / "docs/picture.webp", quality=86, method=6)


if __name__ == "__main__":
    main()
