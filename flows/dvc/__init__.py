"""DVC from Prefect: running dvc, its stage graph, and sharing lock entries between clones."""
