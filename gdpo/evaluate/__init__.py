"""Evaluation on held-out photographs: scores, statistics over images, paired test sets."""
