"""A small imperative builder of TIR statements, for kernels whose loops are written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.ir import Expr
from tvm.sym import Analyzer
from tvm.tirx import Broadcast, BufferLoad, FloatImm, ForKind, IntImm, PrimFunc, Ramp, Var
from tvm.tirx.stmt import (
    AllocBuffer,
    AttrStmt,
    Bind,
    BufferStore,
    DeclBuffer,
    Evaluate,
    For,
    IfThenElse,
    SeqStmt,
    Stmt,
    StringImm,
    While,
)

__all__ = ["Body", "as_vector", "at_most", "flat_index", "fold", "i64", "load", "splat", "vector"]

_KINDS = {
    "serial": ForKind.SERIAL,
    "parallel": ForKind.PARALLEL,
    "vectorized": ForKind.VECTORIZED,
    "unrolled": ForKind.UNROLLED,
}


def i64(value: int | Expr) -> Expr:
    """``value`` as a 64-bit integer expression (expressions are returned as they are)."""
    return IntImm("int64", value) if isinstance(value, int) else value


def splat(value: float | Expr, dtype: str, lanes: int) -> Expr:
    """A number or scalar expression repeated in all lanes of a vector (a scalar for 1 lane)."""
    scalar = value if isinstance(value, Expr) else FloatImm(dtype, value)
    return scalar if lanes == 1 else Broadcast(scalar, lanes)


def vector(start: int | Expr, lanes: int) -> Expr:
    """Index of ``lanes`` consecutive elements from ``start`` on."""
    first = i64(start)
    return first if lanes == 1 else Ramp(first, IntImm(str(first.ty), 1), lanes)


def as_vector(dtype: str, lanes: int) -> str:
    """Name of the type of ``lanes`` elements."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def fold(value: int | Expr) -> int | Expr:
    """``value`` simplified; an int where it is constant."""
    if isinstance(value, Expr):
        value = Analyzer().simplify(value)
    return int(value) if isinstance(value, IntImm) else value


def at_most(value: Expr, limit: int | Expr) -> Expr:
    """The smaller of two indices."""
    return tirx.min(value, i64(limit))


def flat_index(index: Sequence[int | Expr], shape: Sequence[int | Expr]) -> Expr:
    """Row-major offset of ``index`` in an array of ``shape``."""
    out = i64(index[0])
    for i, size in zip(index[1:], shape[1:], strict=True):
        out = out * size + i
    return i64(out)


class Body:
    """Statements of a function, appended in order; loops and branches are ``with`` blocks."""

    index = "int64"
    """Type of loop variables."""

    def __init__(self) -> None:
        self._open: list[list[Stmt]] = [[]]

    def emit(self, stmt: Stmt) -> None:
        """Append one statement."""
        self._open[-1].append(stmt)

    def store(self, buffer: Var, value: Expr, *index: int | Expr) -> None:
        """``buffer[index] = value``."""
        self.emit(BufferStore(buffer, value, [i64(i) for i in index]))

    def bind(self, value: int | Expr, name: str) -> Expr:
        """Name a value for the rest of the enclosing block; constants are returned as they are."""
        if isinstance(value, int | IntImm):
            return self.at(value)
        var = Var(name, value.ty)
        self.emit(Bind(var, value))
        return var

    def alloc(self, size: int, dtype: str, name: str, scope: str = "global") -> Var:
        """A flat buffer: from TVM's workspace pool, or with scope ``"local"`` on the stack.

        Local buffers whose indices all become constants end up in registers.
        """
        buffer = tirx.decl_buffer((i64(size),), dtype, name, scope=scope)
        # without the annotation TVM takes local buffers over 1 KiB from the pool too
        note = {"disable_lower_builtin": True} if scope == "local" else {}
        self.emit(AllocBuffer(buffer, note))
        return buffer

    def view(self, buffer: Var, size: int | Expr, dtype: str, name: str) -> Var:
        """The same memory as a flat buffer."""
        data = tirx.buffer_data(buffer)
        flat = tirx.decl_buffer((i64(size),), dtype, name, data=data)
        self.emit(DeclBuffer(flat, data=data))
        return flat

    @contextmanager
    def loop(
        self, extent: int | Expr, name: str, kind: str = "serial", start: int | Expr = 0
    ) -> Iterator[Expr]:
        """A loop; yields its variable. A loop of one constant step disappears."""
        if isinstance(extent, IntImm):
            extent = int(extent)
        if extent == 1 and isinstance(extent, int):
            yield self.at(start)
            return
        var, first, count = Var(name, self.index), self.at(start), self.at(extent)
        with self.collected(lambda body: For(var, first, count, _KINDS[kind], body)):
            yield var

    def at(self, value: int | Expr) -> Expr:
        """A number of the type of loop variables; expressions are returned as they are."""
        return IntImm(self.index, value) if isinstance(value, int) else value

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Statements that run where ``condition`` holds."""
        with self.collected(lambda body: IfThenElse(condition, body, None)):
            yield

    @contextmanager
    def repeat(self, condition: Expr) -> Iterator[None]:
        """Statements that run again as long as ``condition`` holds, which is looked at before."""
        with self.collected(lambda body: While(condition, body)):
            yield

    @contextmanager
    def outlined(self, name: str) -> Iterator[None]:
        """Statements as a function of their own in machine code, a call of which stands here.

        Another statement has to follow: TVM forgets to go back to the caller's debug location.
        """
        node = IntImm("int32", 0)
        with self.collected(lambda body: AttrStmt(node, "compute_scope", StringImm(name), body)):
            yield

    @contextmanager
    def collected(self, make: Callable[[Stmt], Stmt]) -> Iterator[None]:
        """The statements of the block as one, ``make(statements)``."""
        self._open.append([])
        yield
        self.emit(make(_sequence(self._open.pop())))

    def function(self, params: Sequence[Var], name: str, attrs: dict[str, object]) -> PrimFunc:
        """The finished function. Arguments must not alias each other."""
        func = PrimFunc(list(params), _sequence(self._open[-1]))
        func = func.with_attr("global_symbol", name)
        for key, value in {"tirx.noalias": True, "s_tir": True, **attrs}.items():
            func = func.with_attr(key, value)
        return func


def _sequence(stmts: list[Stmt]) -> Stmt:
    if not stmts:
        return Evaluate(IntImm("int32", 0))
    return stmts[0] if len(stmts) == 1 else SeqStmt(stmts)


def load(buffer: Var, *index: int | Expr) -> Expr:
    """``buffer[index]``."""
    return BufferLoad(buffer, [i64(i) for i in index])
