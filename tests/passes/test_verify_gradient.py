"""VerifyDifferentiable against what relax.transform.Gradient really does."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

import ttsnn.ops
from ttsnn.errors import PassError
from ttsnn.passes.verify_gradient import VerifyDifferentiable
from ttsnn.program import make_program


def module(body, inputs=1, extra=None):
    """Program ``main(x, w, b)`` with parameters layer.weight and layer.bias, all [2, 3]."""
    x, w, b = (relax.Var(n, relax.TensorType([2, 3], "float32")) for n in ("x", "w", "b"))
    bb = relax.BlockBuilder(tvm.IRModule(extra or {}))
    with bb.function("main", [x, w, b], {"num_input": inputs}):
        with bb.dataflow():
            out = bb.emit_output(body(bb, x, w, b))
        bb.emit_func_output(out)
    mod = bb.get()
    values = {"layer.weight": np.ones((2, 3), "float32"), "layer.bias": np.ones((2, 3), "float32")}
    return mod.with_attrs(dict(make_program(mod["main"], values).attrs.items()))


def emit(bb, e):
    return bb.emit(e)


def spike(bb, x, w, b):
    h = emit(bb, op.multiply(x, w))
    s = emit(bb, op.astype(emit(bb, op.greater(h, b)), "float32"))
    return op.sum(s)


def adjoints(mod):
    """Names of the parameters whose gradient Gradient makes a constant zero."""
    main = mod["main"]
    out = relax.transform.Gradient("main", require_grads=list(main.params[1:]))(mod)
    out = relax.transform.CanonicalizeBindings()(out)["main_adjoint"]
    made = {b.var: b.value for b in out.body.blocks[0].bindings}
    zeros = []
    for p, g in zip(main.params[1:], made_fields(out, made), strict=True):
        if isinstance(made.get(g), relax.Call) and made[g].op.name == "relax.zeros":
            zeros.append(p.name)
    return zeros


def made_fields(func, made):
    out = func.body.body
    while isinstance(out, relax.Var):
        out = made[out]
    grads = out.fields[1]
    while isinstance(grads, relax.Var):
        grads = made[grads]
    return grads.fields


def where_spike(bb, x, w, b):
    h = emit(bb, op.multiply(x, w))
    one, zero = relax.const(1.0, "float32"), relax.const(0.0, "float32")
    s = emit(bb, op.where(emit(bb, op.greater_equal(h, b)), one, zero))
    return op.sum(s)


def through_integers(bb, x, w, b):
    i = emit(bb, op.astype(emit(bb, op.multiply(x, w)), "int32"))
    y = emit(bb, op.astype(emit(bb, op.negative(i)), "float32"))
    return op.sum(emit(bb, op.add(y, b)))


def rounding(bb, x, w, b):
    return op.sum(emit(bb, op.add(emit(bb, op.round(emit(bb, op.multiply(x, w)))), b)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (spike, r"'layer.bias', 'layer.weight'.*relax.greater of \[2, 3\].*use relax.snn.lif"),
        (where_spike, r"'layer.bias', 'layer.weight'.*relax.greater_equal.*relax.where"),
        (
            through_integers,
            r"parameter 'layer.weight': .*relax.astype of \[2, 3\].*cast to float32",
        ),
        (rounding, r"parameter 'layer.weight': operator relax.round has no gradient"),
    ],
)
def test_refuses_and_names_operator_and_parameter(body, message):
    with pytest.raises(PassError, match=message):
        VerifyDifferentiable()(module(body))


@pytest.mark.parametrize("body", [spike, where_spike])
def test_what_is_refused_really_is_silently_zero(body):
    assert adjoints(module(body)) == ["w", "b"]


def private_function():
    y = relax.Var("y", relax.TensorType([2, 3], "float32"))
    bb = relax.BlockBuilder()
    with bb.function("helper", [y], private=True):
        bb.emit_func_output(bb.emit(op.exp(y)))
    return bb.get()["helper"]


def test_refuses_a_call_of_another_function():
    helper = tvm.ir.GlobalVar("helper")
    func = private_function()
    relax.expr._update_type(helper, func.ty)

    def body(bb, x, w, b):
        h = emit(bb, relax.Call(helper, [emit(bb, op.multiply(x, w))]))
        return op.sum(emit(bb, op.add(h, b)))

    mod = module(body, extra={helper: func})
    assert adjoints(mod) == ["w"]
    with pytest.raises(PassError, match=r"'layer.weight': .*function 'helper'.*Inline"):
        VerifyDifferentiable()(mod)
    # only the bias is asked for, and that gets its gradient
    VerifyDifferentiable(["layer.bias"])(mod)


def fine_relu(bb, x, w, b):
    h = emit(bb, op.multiply(x, w))
    y = emit(bb, op.where(emit(bb, op.greater(h, relax.const(0.0, "float32"))), h, b))
    return op.sum(y)


def fine_dialect(bb, x, w, b):
    h = emit(bb, op.expand_dims(emit(bb, op.multiply(x, w)), 0))
    return op.sum(emit(bb, emit(bb, ttsnn.ops.lif(h, b))[0]))


def fine_on_purpose(bb, x, w, b):
    """Straight through a rounding: its own contribution is cut off by hand."""
    y = emit(bb, op.multiply(x, w))
    offset = emit(bb, op.subtract(emit(bb, op.round(y)), y))
    return op.sum(emit(bb, op.add(y, emit(bb, op.grad.no_grad(offset)))))


def fine_mask_of_an_input(bb, x, w, b):
    mask = emit(bb, op.astype(emit(bb, op.greater(x, relax.const(0.0, "float32"))), "float32"))
    return op.sum(emit(bb, op.multiply(mask, emit(bb, op.add(w, b)))))


def fine_report_beside_the_loss(bb, x, w, b):
    y = emit(bb, op.multiply(x, emit(bb, op.add(w, b))))
    loss, best = emit(bb, op.sum(y)), emit(bb, op.argmax(y, axis=1))
    return relax.Tuple([loss, emit(bb, op.astype(best, "float32"))])


@pytest.mark.parametrize("body", [fine_relu, fine_dialect, fine_on_purpose, fine_mask_of_an_input])
def test_accepts(body):
    mod = module(body)
    assert VerifyDifferentiable()(mod).same_as(mod)


def test_only_the_asked_output_counts():
    mod = module(fine_report_beside_the_loss)
    VerifyDifferentiable(output=0)(mod)
    with pytest.raises(PassError, match=r"relax\.argmax"):
        VerifyDifferentiable()(mod)
    with pytest.raises(PassError, match="output 2 is asked for, the function has 2 results"):
        VerifyDifferentiable(output=2)(mod)


def test_unknown_parameter():
    with pytest.raises(PassError, match=r"no parameter 'conv.weight'; it has x, layer.weight"):
        VerifyDifferentiable(["conv.weight"])(module(fine_relu))
