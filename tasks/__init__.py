"""Stages and tools: read parameters and files, call `gdpo`, write files. Also the command line."""
