"""The page of `gdpo-sr app`; command.py is the command."""
