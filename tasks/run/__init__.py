"""What surrounds a running stage: progress, trackers, torchrun and the provenance of its
results.
"""
