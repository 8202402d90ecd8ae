"""Tools: commands that people run and dvc.yaml does not. tasks/commands.py lists them."""
