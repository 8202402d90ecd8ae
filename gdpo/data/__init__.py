"""Photographs -> LR-HR pairs in shards, and the selection of patches for the rollouts."""
