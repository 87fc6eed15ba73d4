"""How a command ends: its exit code, and at most one line on stderr."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable

from bsformat import BstkError

#: Exit codes of a shell for a process ended by SIGINT, and by SIGPIPE.
_INTERRUPTED, _PIPE = 130, 141


def ended(run: Callable[[], int], program: str) -> int:
    """Run a command and give its exit code, whatever happens in it."""
    settle_streams()
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail(program, "interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has left; what is still buffered must not fail again when the process ends.
        _discard_stdout()
        return _PIPE
    except BstkError as error:
        return _fail(program, str(error))
    except Exception as error:
        if os.environ.get("BSTK_DEBUG"):
            traceback.print_exc()
        return _fail(program, _unexpected(error))
    return code


def settle_streams() -> None:
    """Let nothing fail for where stdout and stderr lead: to a terminal that cannot show a character, or nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before this process began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fail(program: str, message: str, code: int = 1) -> int:
    line = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
    print(f"{program}: error: {line}", file=sys.stderr)
    return code


def _unexpected(error: Exception) -> str:
    """One line for what no module of ours raises on purpose."""
    detail = " ".join(str(error).split())[:500]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory{f' ({detail})' if detail else ''}: name a smaller budget, or another device"
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None and _is_full(sys.stdout):
            _discard_stdout()
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}"
    return f"{type(error).__name__}{f': {detail}' if detail else ''} (unexpected; BSTK_DEBUG=1 shows where it arose)"


def _is_full(stream: object) -> bool:
    try:
        getattr(stream, "flush", lambda: None)()
    except OSError:
        return True
    return False


def _discard_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, descriptor)
    os.close(sink)
