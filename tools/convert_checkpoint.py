#!/usr/bin/env python
"""Write weights for another home: `convert_checkpoint.py INPUT --to HOME --output OUT [-e SPEC] [KEY=VALUE ...]`.

INPUT is whatever m2f reads: a file or a Hugging Face folder of any known home, or `package:NAME`. `encryption_key=KEY`
decrypts it and encrypts OUT; `--output-key` gives OUT another key or, if it is empty, none.
"""

import argparse
import logging
import sys
import traceback

from m2f.checkpoint.writing import HOMES
from m2f.engine.convert import convert


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Read weights of any home and write them for another.",
        epilog="official: .pkl as in the model zoo, or .pth. huggingface: a folder; it needs the model's spec, which a "
        "training checkpoint of m2f and a Hugging Face folder bring along.",
        allow_abbrev=False,
    )
    parser.add_argument("input", metavar="INPUT", help="a weight file, a Hugging Face folder, or package:NAME")
    parser.add_argument("--to", required=True, choices=list(HOMES), dest="home", help="whose names and container")
    parser.add_argument("--output", required=True, metavar="OUT", help="the file, or for huggingface the folder")
    parser.add_argument("--config-file", "-e", "--experiment_spec", metavar="SPEC", help="the spec of the model")
    parser.add_argument("--overwrite", action="store_true", help="take the place of an output that is there")
    parser.add_argument("--output-key", metavar="KEY", help="encrypts OUT; '' leaves it plain (default: as INPUT)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the spec; encryption_key=KEY")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Convert; 0 when done, 2 when the input, the spec or the output are wrong, 1 when m2f is."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr: stdout is the report
    try:
        done = convert(
            args.input,
            args.home,
            args.output,
            spec=args.config_file,
            overrides=args.overrides,
            overwrite=args.overwrite,
            output_key=args.output_key,
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception:  # noqa: BLE001 - the outermost place: whatever is left is a defect of ours
        traceback.print_exc()
        return 1
    print("\n".join(done.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
