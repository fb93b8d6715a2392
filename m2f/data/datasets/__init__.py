"""One module per file format, and the table of builtin datasets; importing the package registers them all."""

from m2f.data.datasets import builtin, coco_instance, coco_panoptic, image_folder, semantic_pairs

__all__ = ["builtin", "coco_instance", "coco_panoptic", "image_folder", "semantic_pairs"]
