"""Keeping libraries that print, warn and draw bars away from this command's output."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing that runs inside reaches stdout, or stderr where that is no terminal; warnings are dropped."""
    with ExitStack() as stack:
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.WARNING))
        stack.callback(logging.disable, disabled)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield
