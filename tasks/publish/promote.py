"""Make a published run the promoted one: `gdpo-sr promote RUN`.

The pointer s3://BUCKET/models/latest.json (of a run of RealSR-R1: models/vlcot/latest.json) is
written by compare-and-swap: if two people promote at once, one of them gets an error. The run's
scores are downloaded to promoted/<benchmark>/ (promoted/vlcot/<benchmark>/), which is in git; later
reports and the nightly evaluation compare with them.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from tasks.arguments import DEFAULT_STORE, add_store

EXAMPLE = f"gdpo-sr promote 20261121T020000Z-1a2b3c4d --store {DEFAULT_STORE}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run and the bucket."""
    parser.add_argument("run", help="its name in runs/index.html")
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print the run's manifest")


def main(args: argparse.Namespace) -> int:
    """Promote the run and download its scores."""
    from tasks.paths import MODELS_PAGE
    from tasks.publish import promotion, records  # torch, boto3: seconds
    from tasks.store.s3 import Store
    from tasks.systems import SYSTEMS

    manifest = promotion.promote(args.store, args.run, datetime.now(UTC))
    store = Store.at(args.store)
    folder = SYSTEMS[records.system_of(manifest)].promoted
    brought = promotion.download_scores(store, manifest, Path(folder))
    if args.json:
        print(json.dumps(manifest, indent=2))
    else:
        print(f"promoted {args.run}: {store.url(MODELS_PAGE)}")
        print(f"commit {', '.join(map(str, brought))} so that the next reports compare with it")
    return 0
