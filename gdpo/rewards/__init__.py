"""Scores of candidates: metrics, how much of an image is detail, and the reward made of both."""
