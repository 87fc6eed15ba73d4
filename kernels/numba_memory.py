"""Numbers at addresses, as compiled code reads and writes them, and a call of such code by several threads."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llvmlite import ir
from numba import cfunc, njit
from numba.core import cgutils, types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function when it is first called, without the interpreter's lock; keep the result on disk if possible.

    numba compiles anew when the function's own file changes, not when one that it imports from does.
    """
    return _kept(njit, function, nogil=True)


def callback(function: Callable[[int], None]) -> int:
    """Compile a function now and return its address; it takes one number of the size of a pointer."""
    address: int = _kept(cfunc, function, types.void(types.int64)).address
    return address


def _kept(decorator: Any, function: Any, *args: Any, **options: Any) -> Any:
    try:
        return decorator(*args, cache=True, **options)(function)
    except RuntimeError:  # No folder that can be written to.
        return decorator(*args, **options)(function)


_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _reader(kind: Any, result: Any, align: int, convert: str = "") -> Any:
    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
            value = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=align)
            return getattr(builder, convert)(value, _I64) if convert else value

        return result(types.int64), emit

    return read


read_u8 = _reader(_I8, types.int64, 1, "zext")
read_u16 = _reader(_I16, types.int64, 2, "zext")
read_i32 = _reader(_I32, types.int64, 4, "sext")
read_i64 = _reader(_I64, types.int64, 8)
read_f32 = _reader(_F32, types.float32, 4)


@intrinsic
def write_f32(typing: Any, address: Any, value: Any) -> Any:
    """Write a float32 to an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _F32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), emit


@intrinsic
def write_i64(typing: Any, address: Any, value: Any) -> Any:
    """Write an int64 to an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def clear(typing: Any, address: Any, size: Any) -> Any:
    """Write zeros to `size` bytes at an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        cgutils.memset(builder, builder.inttoptr(args[0], _I8.as_pointer()), args[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def copy(typing: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy `size` bytes from one address to another, which do not overlap."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        pointers = [builder.inttoptr(address, _I8.as_pointer()) for address in args[:2]]
        cgutils.raw_memcpy(builder, *pointers, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def take_number(typing: Any, address: Any) -> Any:
    """Return the int64 at an address and leave the next one there; every thread gets another."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), emit


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """Return the float32 of the lower 32 bits of an int64."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        return builder.bitcast(builder.trunc(args[0], _I32), _F32)

    return types.float32(types.int64), emit


@intrinsic
def call_by_threads(typing: Any, parallel: Any, function: Any, data: Any, threads: Any) -> Any:
    """Call function(data), or have it called in `threads` threads by GOMP_parallel, whose address is `parallel`.

    All are int64.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        parallel, function, data, threads = args
        nothing = ir.VoidType()
        region = ir.FunctionType(nothing, [_I64, _I64, _I32, _I32])
        with builder.if_else(builder.icmp_signed(">", threads, ir.Constant(_I64, 1))) as (several, alone):
            with several:
                call = builder.inttoptr(parallel, region.as_pointer())
                builder.call(call, (function, data, builder.trunc(threads, _I32), ir.Constant(_I32, 0)))
            with alone:
                call = builder.inttoptr(function, ir.FunctionType(nothing, [_I64]).as_pointer())
                builder.call(call, (data,))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@compiled
def read_f16(address: int) -> float:
    """Return the float16 at an address as float32."""
    bits = read_u16(address)
    sign = (bits & 0x8000) << 16
    exponent = (bits >> 10) & 31
    if exponent == 0:
        # Made as a whole number, so that no setting of the processor takes it for zero.
        small = types.float32(bits & 0x3FF) * types.float32(2.0**-24)
        return -small if sign else small
    if exponent == 31:
        return float_of_bits(sign | 0x7F800000 | ((bits & 0x3FF) << 13))
    return float_of_bits(sign | ((exponent + 112) << 23) | ((bits & 0x3FF) << 13))
