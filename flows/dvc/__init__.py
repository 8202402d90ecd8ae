"""DVC from Prefect: running it, its graph, and lock entries that travel between clones."""
