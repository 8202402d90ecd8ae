"""A model of RealSR-R1 as a folder of transformers.

    out/  config.json  model.safetensors  tokenizer/  model.json  README.md

    from gdpo.vlcot.trunk import Trunk
    trunk = Trunk.from_pretrained("out")      a ChameleonForConditionalGeneration that writes images

model.json is the card of the model that was exported: it names the training and the SHA-256 of the
files there. tokenizer/ is copied: ids are those of `gdpo.vlcot.folder.vocabulary_of`.
"""

import shutil
from pathlib import Path

from gdpo.files import check_writable, written_aside
from gdpo.model.card import NAME
from gdpo.vlcot.folder import load_model

README = """# {label}, exported

A language model over words and image codes (RealSR-R1, arXiv 2506.16796), in transformers' layout:

```python
from gdpo.vlcot.trunk import Trunk

trunk = Trunk.from_pretrained("FOLDER")
```

{ids} ids, {parameters} parameters, pictures of {side} pixels a side. `model.json` is the card of
the model that this was made from; `tokenizer/` turns pictures into codes (gdpo.vlcot.folder).
The plain class of transformers loads it too, but cannot write image codes.
"""


def export(folder: Path, target: Path) -> None:
    """Write the model in `folder` as the transformers folder `target`.

    Errors: ValueError if `target` is there already, or naming the file of `folder` and its defect.
    """
    check_writable(target)
    if target.exists():
        raise ValueError(f"{target}: is there already; choose another output")
    model = load_model(folder)
    with written_aside(target) as part:
        part.mkdir()
        model.trunk.save_pretrained(part)
        shutil.copytree(folder / "tokenizer", part / "tokenizer")
        shutil.copyfile(folder / NAME, part / NAME)
        (part / "README.md").write_text(
            README.format(
                label=model.card.label,
                ids=model.vocabulary.size,
                parameters=sum(p.numel() for p in model.trunk.parameters()),
                side=model.vocabulary.stages[-1],
            ),
            encoding="utf-8",
        )
