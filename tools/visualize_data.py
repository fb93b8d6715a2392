#!/usr/bin/env python
"""Draw what the model is fed: `visualize_data.py --config-file SPEC --output-dir FOLDER [--split val] [KEY=VALUE ...]`.

Pictures of `train` are augmented and show the targets; those of `val` are resized as in evaluation.
Pixels that do not count are striped.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from PIL import Image

from m2f.config import load_spec
from m2f.data.build import entries, load_dataset
from m2f.data.loader import build_eval_loader, build_train_loader
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput
from m2f.visualization import draw_sample


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw what the model is fed, as pictures.")
    parser.add_argument("--config-file", "-e", "--experiment_spec", required=True, metavar="SPEC")
    parser.add_argument("--output-dir", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--split", choices=["train", "val"], default="train")
    parser.add_argument("--num", type=int, default=16, metavar="N", help="pictures to draw (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the spec")
    return parser.parse_intermixed_args(argv)


def samples(args: argparse.Namespace) -> Iterator[tuple[Metadata, ModelInput]]:
    """What the loader of the split hands to the model, with its targets."""
    cfg = load_spec(args.config_file, args.overrides)
    dataset = load_dataset(entries(cfg, args.split)[0])
    batches: Iterable[list[ModelInput]] = (
        build_train_loader(cfg, dataset)
        if args.split == "train"
        else build_eval_loader(cfg, dataset, "val", (), with_targets=True)
    )
    return ((dataset.metadata, sample) for sample in chain.from_iterable(batches))


def main(argv: list[str] | None = None) -> int:
    """Draw; 0 when done, 2 when spec or data are wrong."""
    args = parse(argv)
    try:
        for number, (metadata, sample) in enumerate(islice(samples(args), args.num)):
            args.output_dir.mkdir(parents=True, exist_ok=True)
            path = args.output_dir / f"{number:03d}_{Path(sample['file_name']).stem}.png"
            Image.fromarray(draw_sample(sample, metadata)).save(path)
            print(path)
    except (ValueError, KeyError, OSError) as error:
        logging.getLogger("visualize_data").error(error.args[0] if isinstance(error, KeyError) else error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
