"""The stages of dvc.yaml: one module each, parameters and input files in, output files out."""
