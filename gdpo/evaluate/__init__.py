"""Evaluation on held-out photographs: scores, statistics over images, tables."""
