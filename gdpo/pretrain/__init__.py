"""Pretraining: the losses of NAOSD, its loop, and the tiny prior."""
