"""`python -m market_data.demo DIR [--seed N]`: write the demo's world and say what is in it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from market_data.demo.world import TRUTH, generate


def main() -> int:
    """Write the world; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m market_data.demo", description=__doc__)
    parser.add_argument("directory", type=Path, help="its directory, empty or not there yet")
    parser.add_argument("--seed", type=int, default=7, help="another seed, another world (default: 7)")
    given = parser.parse_args()
    try:
        truth = generate(given.directory, given.seed)
    except FileExistsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for feed in sorted({delivery.feed for delivery in truth.deliveries}):
        loads = sum(delivery.feed == feed for delivery in truth.deliveries)
        sys.stdout.write(f"{feed:<24}{loads:>4} files{truth.records_of(feed):>9,} records\n")
    sys.stdout.write(f"what must come of them: {given.directory / TRUTH}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
