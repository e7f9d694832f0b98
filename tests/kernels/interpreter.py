"""Triton's interpreter, as the tests need it."""

from __future__ import annotations


def repair_interpreter() -> None:
    """The interpreter takes a loop's bounds from arrays of one element, which NumPy 2.4 refuses to make an int."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
