"""What a command asks of the file that it is to write, before it does any work."""

import os

from bsformat.errors import WriteError


def check_output(output: str, *, force: bool) -> None:
    """Refuse an output that exists and is not to be replaced, or that has no folder.

    Raises:
        WriteError
    """
    if os.path.isdir(output):
        raise WriteError("is a folder; name a file in it", where=output)
    if os.path.lexists(output) and not force:
        raise WriteError("exists already; --force replaces it", where=output, reason="output-exists")
    folder = os.path.dirname(os.path.abspath(output))
    if not os.path.isdir(folder):
        raise WriteError("the folder does not exist; create it first", where=folder)
