"""From a photograph to its enlargement: colour correction, tiling and the pipeline."""
