#!/usr/bin/env python
"""`m2f inference` from a checkout: `inference.py -e SPEC [KEY=VALUE ...]`."""

import sys

from m2f.engine.run import command

if __name__ == "__main__":
    sys.exit(command(["inference", *sys.argv[1:]]))
