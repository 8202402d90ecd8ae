"""The files that stages exchange: one module per format, its only reader and writer."""
