"""The folder where packing keeps what it has done, so that a run that was ended goes on where it was.

Every step is one file that appears complete or not at all. A manifest says what they were made from; a folder that was
made from anything else is refused. A lock, which the system lets go when a process ends in whatever way, keeps a
second run out.
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import torch

from bsformat.atomic import replace_file
from bsformat.errors import ModelError, WriteError

_MANIFEST: Final = "manifest.json"
_LOCK: Final = "lock"
#: Raised when what the files mean changes.
_LAYOUT: Final = 1
#: Bytes of zeros written at once.
_ZEROS: Final = 1 << 20


class WorkFolder:
    """Finished steps on disk. Use it in a ``with`` statement.

    It is removed when the statement ends well, unless it is to be kept, and when the model cannot be packed at all; it
    stays when the run is interrupted or the disk is full.

    Args:
        path: made if it is not there.
        identity: everything that determines the result, by names for people; plain JSON values.
        restart: discard what other inputs, or an earlier run, left there.
        keep: do not remove it at the end.

    Raises:
        WriteError: it belongs to other inputs (reason ``work-folder``), another process works in it
            (``work-folder-busy``), or it cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], identity: Mapping[str, Any], *, restart: bool = False, keep: bool = False
    ) -> None:
        self.path = Path(path)
        self._keep = keep
        with _writing(str(self.path)):
            if self.path.exists() and not self.path.is_dir():
                raise WriteError("is no folder; name another work folder", where=str(self.path), reason="work-folder")
            self.path.mkdir(exist_ok=True)
            others = [p for p in self.path.iterdir() if p.name != _LOCK and p.suffix != ".part"]
            if others and not self.has(_MANIFEST):
                raise WriteError(
                    "is a folder with other things in it; name an empty one, or one that is not there",
                    where=str(self.path),
                    reason="work-folder",
                )
            self._lock = self._locked()
        try:
            self._claim({"layout": _LAYOUT, **identity}, restart)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "WorkFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        useless = isinstance(error, ModelError)  # another run would end the same way
        with suppress(OSError):
            self._clean()
            if (error is None and not self._keep) or useless:
                self._discard()
                self.file(_LOCK).unlink()
                self.path.rmdir()
        self._lock.close()

    def _locked(self) -> IO[bytes]:
        lock = open(self.path / _LOCK, "wb")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise WriteError(
                "another process packs in this folder; wait for it, or name another one",
                where=str(self.path),
                reason="work-folder-busy",
            ) from None
        return lock

    def _claim(self, identity: dict[str, Any], restart: bool) -> None:
        if self.has(_MANIFEST):
            found, identity = self.load_json(_MANIFEST), json.loads(json.dumps(identity))
            differs = sorted(k for k in {*found, *identity} if found.get(k) != identity.get(k))
            if differs and not restart:
                raise WriteError(
                    f"holds the unfinished work of another packing (another {', '.join(differs)}); --restart discards "
                    "it, --work names another folder",
                    where=str(self.path),
                    reason="work-folder",
                )
            if not restart:
                self._clean()
                return
            self._discard()
        self.save_json(_MANIFEST, identity)

    def _discard(self) -> None:
        """Remove everything; the manifest last, so that what is left at any moment is known as ours."""
        for item in sorted(self.path.iterdir(), key=lambda p: p.name == _MANIFEST):
            if item.name != _LOCK:
                item.unlink()

    def _clean(self) -> None:
        """Remove what was being written when an earlier run ended."""
        for item in self.path.iterdir():
            if item.name.endswith(".part"):
                item.unlink()

    def file(self, name: str) -> Path:
        """Where a step is, or will be."""
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether a step is done."""
        return self.file(name).is_file()

    def drop(self, name: str) -> None:
        """Forget a step that later ones make needless."""
        with suppress(FileNotFoundError):
            self.file(name).unlink()

    def write(self, name: str, emit: Callable[[IO[bytes]], None]) -> None:
        """Make a file of what ``emit`` writes."""
        path = str(self.file(name))
        with _writing(path):
            replace_file(path, emit)

    def save_json(self, name: str, value: Any) -> None:
        """Keep a plain value."""
        data = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
        self.write(name, lambda out: _ignore(out.write(data)))

    def load_json(self, name: str) -> Any:
        """The value of `save_json`."""
        return json.loads(self.file(name).read_bytes())

    def save(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Keep tensors, and text about them, as a safetensors file."""
        from safetensors.torch import save_file

        part = self.file(f"{name}.part")
        with _writing(str(self.file(name))):
            plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            try:
                save_file(plain, part, metadata={"format": "pt", **(metadata or {})})
            except BaseException as error:
                part.unlink(missing_ok=True)
                if type(error).__name__ == "SafetensorError":  # what it makes of an error of the operating system
                    raise OSError(" ".join(str(error).split())) from None
                raise
            self._publish(part, name)

    def load(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `save`."""
        from safetensors.torch import load_file

        return load_file(self.file(name))

    @contextmanager
    def array(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """A tensor to be filled that lives in a file, so that the system can take its memory away; kept at the end."""
        part = self.file(f"{name}.part")
        with _writing(str(self.file(name))):
            _reserve(part, prod(shape) * dtype.itemsize)
        value = _mapped(part, shape, dtype)
        yield value
        with _writing(str(self.file(name))):
            self._publish(part, name)

    def open_array(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The tensor of `array`, mapped; not to be written to."""
        return _mapped(self.file(name), shape, dtype)

    def _publish(self, part: Path, name: str) -> None:
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, self.file(name))
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turn what the operating system says while ``path`` is written into a `WriteError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        raise WriteError(
            f"cannot be written ({error.strerror or error}); what was done before is kept there: "
            f"{'free some space' if full else 'check the folder'} and run the same command again",
            where=path,
            reason="disk-full" if full else "write",
        ) from None


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_file(str(path), shared=True, size=prod(shape), dtype=dtype).view(shape)


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose bytes are all on the disk: one that fills up under a mapping kills the process."""
    with open(path, "wb") as file:
        for start in range(0, size, _ZEROS):
            file.write(bytes(min(_ZEROS, size - start)))


def _ignore(value: object) -> None:
    """Drop what a function returns, where none is expected."""
