"""Print the spec that a run would use: defaults, bases, projects, file and command line together."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from m2f.config import SpecError, diff_spec, dump_spec, load_spec


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 2 is the user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-e", "--config-file", "--experiment_spec", dest="spec", help="the YAML spec; none: the defaults"
    )
    parser.add_argument("--diff", action="store_true", help="only what differs from the defaults")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides, also as KEY VALUE")
    args = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr: stdout stays YAML
    try:
        cfg = load_spec(args.spec, args.overrides)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    print(diff_spec(cfg) if args.diff else dump_spec(cfg), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
