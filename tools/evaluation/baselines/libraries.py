"""Libraries that are not always installed: whether they are there, and what to say where they are not."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .base import BaselineError


def need(package: str, *, extra: str) -> dict[str, str]:
    """Its version, by its name.

    Raises:
        BaselineError: it is not installed.
    """
    try:
        if find_spec(package) is not None:
            return {package: version(package)}
    except PackageNotFoundError:  # a folder of that name, but no installed package
        pass
    raise BaselineError(f"needs the package {package}: pip install 'bitstack[{extra}]'", where=extra)
