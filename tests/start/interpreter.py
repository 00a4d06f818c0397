"""Triton's interpreter in half of its time: what it patches in triton.language, it looks for once a launch.

By itself it looks at each of those 300 names again whenever a kernel calls a function.
"""

from types import SimpleNamespace


class _Patch:
    """Of one launch, until it ends."""

    at_work: "_Patch | None" = None

    def __init__(self, patch, functions):
        self.scope = patch(functions)
        _Patch.at_work = self

    def restore(self) -> None:
        _Patch.at_work = None
        self.scope.restore()


def patch_once_a_launch() -> None:
    """Where Triton is not installed, there is nothing to do."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    # In place of the function that is called: the modules that kernels and Triton's own functions name.
    functions = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    patch = interpreter._patch_lang
    interpreter._patch_lang = lambda function: None if _Patch.at_work else _Patch(patch, functions)
