"""An untrained model that was exported."""

from inference.conftest import export  # noqa: F401
