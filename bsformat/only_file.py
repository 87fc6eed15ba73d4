"""The file that a directory or a repository means, where it is not named: the only ``.bstk`` that it has."""

import re
from typing import Final

from .errors import NotFoundError

#: What the volumes of a file but its first are called by those who cut it (`bsformat.cutting.volume_name`).
_VOLUME: Final = re.compile(r"(.+)\.[0-9]{5}(\.bstk)")


def the_only(names: list[str], where: str, what: str) -> str:
    """The one name of a ``.bstk`` that a directory or repository, ``what``, has; volumes of it are not counted.

    Raises:
        NotFoundError: there is none, or there are several.
    """
    named = set(names)
    found = [name for name in names if not ((cut := _VOLUME.fullmatch(name)) and cut[1] + cut[2] in named)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFoundError(f"a {what} without a .bstk at its top: name a file", where=where)
    shown = ", ".join(sorted(found)[:3]) + (", …" if len(found) > 3 else "")
    raise NotFoundError(f"a {what} with {len(found)} .bstk files: name one of {shown}", where=where)
