"""The files between stages: one module per format, its only reader and writer."""
