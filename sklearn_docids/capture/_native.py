# SPDX-License-Identifier: BSD-3-Clause
"""What numba lacks for walking bytes: unaligned numbers in one load, prefetching, copying, a 128-bit product.

None of them checks bounds; their callers do. With ``NUMBA_BOUNDSCHECK=1`` the loads and copies are made of indexing
instead, so that numba checks every byte of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

from sklearn_docids._warn import warn_caller

CACHE_LINE = 64


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL; keep the machine code on disk where a folder for it can be written."""
    return _compiled(function)


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of the kernels that call it: for what runs once per packet, where a call would cost."""
    return _compiled(function, forceinline=True)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    # Kernels allocate nothing, so numba need not count references to arrays: that is two locked instructions per
    # array and call.
    compiled = numba.njit(nogil=True, _nrt=False, **options)(function)
    try:
        compiled._cache = _KernelCache(function)  # what cache=True does, with a cache that may fail
    except RuntimeError as error:  # numba found no folder to write to
        if "no locator" not in str(error):
            raise
        _warn_unkept("no folder for compiled kernels can be written")
    return compiled


class _KernelCache(FunctionCache):
    """Machine code on disk, as long as there is room: a full disk stops no work that has nothing to do with it."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a compiled kernel, None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except OSError:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel if that is possible."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_unkept(f"compiled kernels cannot be written to {self.cache_path} ({error.strerror})")


@cache
def _warn_unkept(reason: str) -> None:
    """Say once that each process compiles anew: a read-only installation and no home directory, or a full disk."""
    warn_caller(
        f"{reason}: each process compiles them anew, which takes some ten seconds; set NUMBA_CACHE_DIR to a folder for "
        "them"
    )


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return the address of an element of a one-dimensional array as a pointer to bytes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), cgutils.voidptr_t)


def _load(bits: int, order: str) -> Any:
    """Return an intrinsic that loads an unsigned number of ``bits`` bits at any byte of an array."""
    result = types.uint64 if bits == 64 else types.int64

    def load(typing_context: Any, data: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = _address(context, builder, signature.args[0], *arguments)
            number = builder.load(builder.bitcast(address, ir.IntType(bits).as_pointer()), align=1)
            if order != sys.byteorder:
                number = builder.bswap(number)
            return builder.zext(number, ir.IntType(64)) if bits < 64 else number

        return result(data, types.intp), generate

    return intrinsic(load)


def apart(function: Callable[..., Any]) -> Any:
    """Compile a function of two arguments that is called, never inlined: for what is rare and long.

    Within its callers, it would push what is not rare out of the processor's cache of instructions.
    """
    compiled = _compiled(function)

    def call(typing_context: Any, first: Any, second: Any) -> Any:
        signature = typing_context.resolve_function_type(numba.typeof(compiled), (first, second), {})
        callee = compiled.overloads[signature.args]

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            context.add_linking_libs([callee.library])
            status, result = context.call_conv.call_function(
                builder, context.declare_function(builder.module, callee.fndesc), signature.return_type,
                signature.args, arguments, attrs=("noinline",),
            )  # fmt: skip
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return result

        return signature, generate

    return intrinsic(call)


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for an element, all cache lines of it, before it is needed: the processor goes on meanwhile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments)
        word = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word]), "llvm.prefetch.p0"
        )
        size = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
        for offset in sorted({*range(0, size, CACHE_LINE), size - 1}):  # the last byte may be one line further
            line = builder.gep(address, [ir.Constant(ir.IntType(64), offset)], source_etype=ir.IntType(8))
            builder.call(function, [line, word(1), word(3), word(1)])  # to write, into all caches, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def _copy(typing_context: Any, source: Any, first: Any, target: Any, place: Any, n_bytes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        origin = _address(context, builder, signature.args[0], *arguments[:2])
        goal = _address(context, builder, signature.args[2], *arguments[2:4])
        cgutils.raw_memcpy(builder, goal, origin, arguments[4], 1)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), generate


@intrinsic
def _set_u16(typing_context: Any, data: Any, at: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments[:2])
        short = builder.trunc(arguments[2], ir.IntType(16))
        if sys.byteorder == "little":
            short = builder.bswap(short)
        builder.store(short, builder.bitcast(address, short.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.int64), generate


@intrinsic
def _clear(typing_context: Any, data: Any, at: Any, n_bytes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments[:2])
        cgutils.memset(builder, address, arguments[2], 0)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.intp), generate


@intrinsic
def product(typing_context: Any, a: Any, b: Any) -> Any:
    """Return (upper, lower) 64 bits of the product of two unsigned numbers."""
    pair = types.UniTuple(types.uint64, 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        whole = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        upper = builder.trunc(builder.lshr(whole, ir.Constant(wide, 64)), ir.IntType(64))
        return context.make_tuple(builder, pair, (upper, builder.trunc(whole, ir.IntType(64))))

    return pair(types.uint64, types.uint64), generate


if numba.config.BOUNDSCHECK:

    @kernel
    def u16(data, at):
        """Return a big-endian number of two bytes."""
        return (np.int64(data[at]) << 8) | np.int64(data[at + 1])

    @kernel
    def u32(data, at):
        """Return a big-endian number of four bytes."""
        return (u16(data, at) << 16) | u16(data, at + 2)

    @kernel
    def u64(data, at):
        """Return a big-endian number of eight bytes."""
        return (np.uint64(u32(data, at)) << np.uint64(32)) | np.uint64(u32(data, at + 4))

    @kernel
    def little_u16(data, at):
        """Return a little-endian number of two bytes."""
        return np.int64(data[at]) | (np.int64(data[at + 1]) << 8)

    @kernel
    def little_u32(data, at):
        """Return a little-endian number of four bytes."""
        return little_u16(data, at) | (little_u16(data, at + 2) << 16)

    @kernel
    def set_u16(data, at, number):
        """Store a big-endian number of two bytes."""
        data[at], data[at + 1] = np.uint64(number) >> np.uint64(8), np.uint64(number) & np.uint64(0xFF)

    @kernel
    def clear(data, at, n_bytes):
        """Zero bytes."""
        for i in range(at, at + n_bytes):
            data[i] = 0

    @kernel
    def copy(source, first, target, place, n_bytes):
        """Copy bytes from ``source[first:]`` to ``target[place:]``."""
        for i in range(n_bytes):
            target[place + i] = source[first + i]

else:
    u16, u32, u64 = _load(16, "big"), _load(32, "big"), _load(64, "big")
    little_u16, little_u32 = _load(16, "little"), _load(32, "little")
    copy, set_u16, clear = _copy, _set_u16, _clear
