"""Pretraining NAOSD: its losses and its loop."""
