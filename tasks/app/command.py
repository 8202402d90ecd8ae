"""Tool `app`: a page in the browser that enlarges photographs, on this machine.

    gdpo-sr app                      opens at http://127.0.0.1:7860
    gdpo-sr app --host 0.0.0.0       for other machines, too: there is no password

The page (tasks/app/) offers the models below models/ and the one that ships. Gradio serves it: the
extra `app`.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from tasks.arguments import port

EXAMPLE = "gdpo-sr app"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the page is served, and on what it computes."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 for other machines, too; default: 127.0.0.1"
    )
    parser.add_argument("--port", type=port, help="default: the first that is free from 7860 on")
    parser.add_argument(
        "--device", choices=["cpu", "cuda", "mps"], help="default: cuda if there is one, else cpu"
    )


def main(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C or SIGTERM."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files go
    import torch

    from tasks.app.page import served

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with served(Path.cwd(), device, args.host, args.port) as address:
        sys.stdout.write(f"{address} (Ctrl-C stops)\n")
        sys.stdout.flush()
        threading.Event().wait()
    return 0
