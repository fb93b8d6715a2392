#!/usr/bin/env python
"""Train, evaluate and resume from one spec: `train_net.py --config-file SPEC [--eval-only] [KEY=VALUE ...]`."""

import sys

from m2f.engine.run import main

if __name__ == "__main__":
    sys.exit(main())
