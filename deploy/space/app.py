"""The page of `gdpo-sr app` as a Space."""

from tasks.__main__ import main

raise SystemExit(main(["app", "--host", "0.0.0.0", "--port", "7860"]))
