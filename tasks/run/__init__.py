"""Support for running stages: progress, trackers, torchrun and the provenance of results."""
