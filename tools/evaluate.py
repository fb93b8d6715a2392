#!/usr/bin/env python
"""`m2f evaluate` from a checkout: `evaluate.py -e SPEC [KEY=VALUE ...]`."""

import sys

from m2f.engine.run import command

if __name__ == "__main__":
    sys.exit(command(["evaluate", *sys.argv[1:]]))
