"""What `"auto"` stands for: the preferred backend of a device, or the one that was asked for."""

import os
from typing import Final

VARIABLE: Final = "BSTK_KERNELS"
"""The environment variable that names a backend for the whole process."""
_set: list[str] = []


def set_backend(name: str | None) -> None:
    """Use one backend wherever none is named: in models, and in calls with `backend="auto"`.

    A call on a device where it does not run fails, and says so. Before the environment variable BSTK_KERNELS.

    Args:
        name: one of `bitstack.kernels.BACKENDS`; None goes back to the variable, or where it is not set to the
            preferred backend of each device.

    Raises:
        ValueError: there is no such backend.
    """
    from .backends import BACKENDS

    if name is not None and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    _set[:] = [] if name is None else [name]


def asked() -> tuple[str, str]:
    """The backend that was asked for and where, or twice an empty string."""
    if _set:
        return _set[0], "set_backend"
    name = os.environ.get(VARIABLE, "")
    return (name, f"the environment variable {VARIABLE}") if name not in ("", "auto") else ("", "")
