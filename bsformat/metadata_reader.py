"""Reading the metadata section of a file that nobody vouches for (spec §4)."""

import re
from itertools import pairwise
from math import prod
from typing import Any

from . import registry, strict
from .errors import FormatError, UnsupportedError
from .metadata import Attachment, Curve, Form, Metadata, Tensor, Volume, number_chains

#: The names that volumes may have: the same on every file system, and in a URL as they are (spec §4.8).
_PORTABLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class _Map:
    """One map of the metadata, read key by key; what was not read at the end is refused."""

    def __init__(self, value: Any, what: str, where: str) -> None:
        self.what, self.where = what, where
        if not isinstance(value, dict):
            raise self.bad(f"is {type(value).__name__}, expected a map")
        self.left = dict(value)

    def bad(self, message: str, reason: str = "metadata-value") -> FormatError:
        return FormatError(f"metadata: {self.what} {message}", where=self.where, reason=reason)

    def take(self, key: str, kind: type, *, optional: Any = ...) -> Any:
        if key not in self.left:
            if optional is not ...:
                return optional
            raise self.bad(f"lacks the key {key!r}", "metadata-key")
        value = self.left.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.bad(f"has {key} of type {type(value).__name__}, expected {kind.__name__}")
        return value

    def integer(self, key: str, low: int, high: int, *, optional: Any = ...) -> int:
        if key not in self.left and optional is not ...:
            return int(optional)
        value: int = self.take(key, int)
        if not low <= value <= high:
            raise self.bad(f"has {key} {value}, expected {low} to {high}")
        return value

    def name(self, key: str) -> str:
        return check_name(self.take(key, str), f"{self.what} {key}", self.where)

    def end(self) -> None:
        if self.left:
            raise self.bad(f"has the unknown key {sorted(self.left)[0]!r}", "metadata-key")


def check_name(name: str, what: str, where: str) -> str:
    """A name is 1 to 1024 bytes of UTF-8 without NUL."""
    if not 0 < len(name.encode("utf-8", "surrogatepass")) <= registry.MAX_NAME_BYTES or "\0" in name:
        raise FormatError(
            f"metadata: {what} must be 1 to {registry.MAX_NAME_BYTES} bytes without NUL, not {name[:40]!r}",
            where=where,
            reason="metadata-name",
        )
    return name


def decode(data: bytes, where: str, *, has_volumes: bool = False) -> Metadata:
    """Read and check the decoded metadata section.

    Args:
        has_volumes: whether the superblock says that there are volumes.

    Raises:
        FormatError: reasons ``metadata-msgpack``, ``-key``, ``-value``, ``-name`` and ``-duplicate``.
        UnsupportedError: reasons ``kind-unknown`` and ``codec-unknown``.
    """
    top = _Map(strict.unpack(data, where), "map", where)
    writer = top.name("writer")
    raw_tensors = top.take("tensors", list)
    if len(raw_tensors) > registry.MAX_TENSORS:
        raise top.bad(f"has {len(raw_tensors)} tensors, more than {registry.MAX_TENSORS}")
    tensors = number_chains([_tensor(item, i, where) for i, item in enumerate(raw_tensors)])
    meta = Metadata(
        writer=writer,
        tensors=tensors,
        forms=tuple(_form(item, i, where) for i, item in enumerate(top.take("forms", list))),
        aliases=top.take("aliases", dict),
        attachments=tuple(_attachment(item, i, where) for i, item in enumerate(top.take("attachments", list))),
        curves=tuple(_curve(item, i, where) for i, item in enumerate(top.take("curves", list))),
        extra=top.take("extra", dict),
        volumes=_volumes(top.take("volumes", list), top, where) if has_volumes else (),
    )
    top.end()
    _check_names(meta, where)
    _check_scales(meta, where)
    return meta


def _tensor(item: Any, i: int, where: str) -> Tensor:
    m = _Map(item, f"tensor {i}", where)
    name, shape, dtype = m.name("name"), m.take("shape", list), m.take("dtype", str)
    if len(shape) > registry.MAX_DIMENSIONS or any(type(d) is not int or not 0 < d < 1 << 40 for d in shape):
        raise m.bad(
            f"{name!r} has shape {strict.quoted(shape)}, expected at most {registry.MAX_DIMENSIONS} positive dimensions"
        )
    if dtype not in registry.DTYPE_BYTES:
        raise m.bad(f"{name!r} has dtype {dtype!r}, expected one of {', '.join(registry.DTYPE_BYTES)}")
    if prod(shape) > registry.MAX_BLOCK_BYTES:
        raise m.bad(f"{name!r} has {prod(shape)} elements, more than {registry.MAX_BLOCK_BYTES}")
    group = m.integer("group_rows", 1, registry.MAX_BLOCK_BYTES, optional=0)
    scales, transposed = (-1, -1), False
    if group:
        scales = (m.integer("row_scale", 0, 1 << 30), m.integer("col_scale", 0, 1 << 30))
        transposed = m.take("transposed", bool, optional=False)
        if dtype not in registry.FLOAT_DTYPES or len(shape) < 2:
            raise m.bad(f"{name!r} is packed, but of dtype {dtype} and shape {shape}: expected a matrix of floats")
    m.end()
    tensor = Tensor(name, tuple(shape), dtype, group, *scales, transposed)
    if group > tensor.rows:
        raise m.bad(f"{name!r} has groups of {group} rows, but {tensor.rows} rows")
    if tensor.n_chains > registry.MAX_CHAINS:
        raise m.bad(f"{name!r} has {tensor.n_chains} chains, more than {registry.MAX_CHAINS}")
    return tensor


def _form(item: Any, i: int, where: str) -> Form:
    m = _Map(item, f"form {i}", where)
    kind, codec = m.take("kind", str), m.take("codec", str)
    if codec not in registry.CODECS:
        raise UnsupportedError(
            f"form {i} uses the codec {codec!r}; this reader knows {', '.join(registry.CODECS)}: "
            "install a newer bitstack",
            where=where,
            reason="codec-unknown",
        )
    if kind not in registry.KINDS:
        raise UnsupportedError(
            f"form {i} is of the block kind {kind!r}; this reader knows {', '.join(registry.KINDS)}: "
            "install a newer bitstack",
            where=where,
            reason="kind-unknown",
        )
    form = Form(kind, codec)
    if form.has_factors:
        form = Form(kind, codec, m.integer("rank", 1, registry.MAX_RANK), m.take("factors", str))
        if form.factors not in registry.FACTOR_DTYPES:
            raise m.bad(f"has factors {form.factors!r}, expected one of {', '.join(sorted(registry.FACTOR_DTYPES))}")
    m.end()
    return form


def _attachment(item: Any, i: int, where: str) -> Attachment:
    m = _Map(item, f"attachment {i}", where)
    name = m.name("name")
    parts = name.split("/")
    if "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        raise m.bad(f"is named {name!r}, which is no relative path inside a folder", "metadata-name")
    length = m.integer("length", 0, registry.MAX_ATTACHMENT)
    if "data" in m.left:
        data = m.take("data", bytes)
        if len(data) != length:
            raise m.bad(f"{name!r} declares {length} bytes and holds {len(data)}")
        m.end()
        return Attachment(name, length, data=data)
    codec, digest = m.take("codec", str), m.take("digest", bytes)
    offset = m.integer("offset", 0, registry.MAX_FILE_BYTES)
    stored = m.integer("stored", 1, registry.MAX_ATTACHMENT)
    if codec not in registry.CODECS:
        raise UnsupportedError(
            f"attachment {name!r} uses the codec {codec!r}; this reader knows {', '.join(registry.CODECS)}: "
            "install a newer bitstack",
            where=where,
            reason="codec-unknown",
        )
    if len(digest) != 32:
        raise m.bad(f"{name!r} has a digest of {len(digest)} bytes, expected 32")
    if (stored != length) if codec == "none" else (length > registry.expansion_limit(stored)):
        raise m.bad(f"{name!r} declares {stored} stored and {length} decoded bytes with codec {codec}")
    m.end()
    return Attachment(name, length, codec, None, offset, stored, digest)


def _curve(item: Any, i: int, where: str) -> Curve:
    m = _Map(item, f"curve {i}", where)
    points = m.take("points", list)
    curve = Curve(
        m.name("metric"),
        m.take("text", str),
        m.integer("tokens", 0, 1 << 50),
        m.integer("window", 0, 1 << 50),
        m.take("dense", float),
        tuple(_point(p, m) for p in points),
    )
    if any(a[0] >= b[0] for a, b in zip(curve.points, curve.points[1:], strict=False)):
        raise m.bad("has points that do not rise in their number of blocks")
    m.end()
    return curve


def _point(point: Any, m: _Map) -> tuple[int, float]:
    if (
        not isinstance(point, list)
        or len(point) != 2
        or type(point[0]) is not int
        or type(point[1]) not in (int, float)
    ):
        raise m.bad(f"has the point {strict.quoted(point)}, expected [number of blocks, value]")
    if not 0 <= point[0] <= registry.MAX_BLOCKS:
        raise m.bad(f"has a point at {point[0]} blocks")
    return point[0], float(point[1])


def _volumes(items: list[Any], top: _Map, where: str) -> tuple[Volume, ...]:
    if not 0 < len(items) <= registry.MAX_VOLUMES:
        raise top.bad(f"has {len(items)} volumes after the first, expected 1 to {registry.MAX_VOLUMES}")
    volumes = tuple(_volume(item, i, where) for i, item in enumerate(items))
    if any(a.first_block >= b.first_block for a, b in pairwise(volumes)):
        raise top.bad("has volumes whose first blocks do not rise")
    names: set[str] = set()
    for volume in volumes:
        if volume.name.lower() in names:
            raise top.bad(f"names the volume {volume.name!r} twice", "metadata-duplicate")
        names.add(volume.name.lower())
    return volumes


def _volume(item: Any, i: int, where: str) -> Volume:
    m = _Map(item, f"volume {i + 2}", where)
    name = m.take("name", str)
    if not is_volume_name(name):
        shown = strict.quoted(name)
        raise m.bad(f"is named {shown}: letters A to Z, digits, '_', '-' and '.' make a name", "metadata-name")
    volume = Volume(name, m.integer("first_block", 0, registry.MAX_BLOCKS))
    m.end()
    return volume


def is_volume_name(name: str) -> bool:
    """Whether a volume can be called so."""
    return len(name) <= registry.MAX_VOLUME_NAME and _PORTABLE.fullmatch(name) is not None


def _check_names(meta: Metadata, where: str) -> None:
    top = _Map({}, "map", where)
    seen: set[str] = set()
    for name in [*(t.name for t in meta.tensors), *meta.aliases]:
        if name in seen:
            raise top.bad(f"names the tensor {name!r} twice", "metadata-duplicate")
        seen.add(name)
    tensors = {t.name for t in meta.tensors}
    for alias, name in meta.aliases.items():
        check_name(alias, "alias", where)
        if not isinstance(name, str) or name not in tensors:
            raise top.bad(f"has the alias {alias!r} of {strict.quoted(name)}, which is no tensor")
    files: set[str] = set()
    for attachment in meta.attachments:
        if attachment.name in files:
            raise top.bad(f"names the attachment {attachment.name!r} twice", "metadata-duplicate")
        files.add(attachment.name)
    if meta.n_chains > registry.MAX_CHAINS:
        raise top.bad(f"has {meta.n_chains} chains, more than {registry.MAX_CHAINS}")


def _check_scales(meta: Metadata, where: str) -> None:
    for i, t in enumerate(meta.tensors):
        if not t.packed:
            continue
        m = _Map({}, f"tensor {i}", where)
        for key, number, shapes in (
            ("row_scale", t.row_scale, [(t.rows,)]),
            ("col_scale", t.col_scale, [(t.columns,), (t.n_chains, t.columns)]),
        ):
            scale = meta.tensors[number] if number < len(meta.tensors) else None
            if scale is None or scale.packed or scale.dtype not in registry.SCALE_DTYPES or scale.shape not in shapes:
                raise m.bad(
                    f"{t.name!r} has {key} {number}, expected a raw tensor of {' or '.join(map(str, shapes))} "
                    f"in {', '.join(sorted(registry.SCALE_DTYPES))}"
                )
