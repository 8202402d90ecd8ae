"""Writes a photograph that ships, degraded as the pairs of training are.

python docs/tutorials/small_photo.py photo.png
"""

import sys
import tempfile
from pathlib import Path

from tasks.app.examples import write_examples

with tempfile.TemporaryDirectory() as folder:
    Path(sys.argv[1]).write_bytes(write_examples(Path(folder))[0].read_bytes())
