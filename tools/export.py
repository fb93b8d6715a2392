#!/usr/bin/env python
"""`m2f export` from a checkout: `export.py -e SPEC [KEY=VALUE ...]`."""

import sys

from m2f.engine.run import command

if __name__ == "__main__":
    sys.exit(command(["export", *sys.argv[1:]]))
