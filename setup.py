"""Packaging. Detects nothing: what is installed is what is asked for."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "fastling/__init__.py").read_text()).group(1)

# Test dependencies hold what the tests compare with; a user needs none of them.
EXTRAS = {
    "flash": ["flash-attn"],
    "xformers": ["xformers"],
    "float8": ["torchao"],
    "wandb": ["wandb"],
    "dialogues": ["openai"],
    "eval": ["langdetect", "openai", "sacrebleu"],
    "chat": ["prompt_toolkit", "fastapi", "starlette", "uvicorn"],
    # PyTorch for CUDA brings its own Triton; that for CPUs none, and tests run the kernels there, too. The
    # interpreter of 3.6 makes numpy warn, and warnings are errors in tests.
    "test": [
        "pytest",
        "pytest-xdist",
        "hypothesis",
        "fastapi",
        "langdetect",
        "openai",
        "playwright",
        "prompt_toolkit",
        "ruff",
        "sacrebleu[ja,ko]",
        "starlette",
        "transformers>=5.10.1",
        "uvicorn",
        "torchao",
        "triton>=3.7; platform_system == 'Linux'",
        "wandb",
    ],
}

setup(
    name="fastling",
    version=VERSION,
    description="Instruction-tunes LLaMA models on multi-turn, multilingual conversations, and proves it",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # `fastling/kernels` and `fastling/configs` are links into the top level; find_packages misses them.
    packages=[
        "fastling",
        "fastling.configs",
        "fastling.configs.lm_eval",
        "fastling.data",
        "fastling.demo",
        "fastling.evaluation",
        "fastling.evaluation.prompts",
        "fastling.inference",
        "fastling.interactive",
        "fastling.interactive.phrasings",
        "fastling.interactive.prompts",
        "fastling.kernels",
        "fastling.model",
        "fastling.serving",
        "fastling.serving.page",
        "fastling.surgery",
        "fastling.training",
    ],
    package_data={
        "fastling.configs": ["*.yaml", "*.md"],
        "fastling.configs.lm_eval": ["*.yaml"],
        "fastling.demo": ["*.jsonl", "*.model", "*.md"],
        "fastling.evaluation.prompts": ["*.txt"],
        "fastling.interactive.phrasings": ["*.yaml"],
        "fastling.interactive.prompts": ["*.txt"],
        "fastling.serving.page": ["*.html", "*.css", "*.js"],
    },
    install_requires=[
        "jinja2>=3.1.6",
        "matplotlib",
        "numpy",
        "protobuf",
        "pyarrow",
        "pydantic>=2.9",
        "pyyaml",
        "rich",
        "safetensors",
        "sentencepiece>=0.2.1",
        "tokenizers>=0.20",
        "torch>=2.11",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fastling = fastling.__main__:main"]},
)
