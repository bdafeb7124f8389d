from pathlib import Path

from setuptools import find_packages, setup

EXAMPLES = [
    "accelerate>=1.5",
    "av>=14.0",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "pillow>=10.3",
    "psutil>=5.9",
    "tqdm>=4.66",
]

setup(
    name="phenaki-pytorch",
    version="1.0.0",
    description="Phenaki: text to video of any length, with a tokenizer that is causal in time",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["phenaki_pytorch", "phenaki_pytorch.*"]),
    package_data={"phenaki_pytorch": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.13",
        "einops>=0.8.2",
        "vector-quantize-pytorch>=1.32",
        "transformers>=5.23",
        "beartype>=0.23",
    ],
    extras_require={
        "examples": EXAMPLES,
        "doom": [*EXAMPLES, "vizdoom>=1.3"],
        "vae": [*EXAMPLES, "diffusers>=0.42"],
        "test": [
            *EXAMPLES,
            "diffusers>=0.42",
            "peft>=0.17",
            "protobuf>=4.25",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "sentencepiece>=0.2",
        ],
    },
)
