"""The export of an untrained model."""

from inference.conftest import export  # noqa: F401
