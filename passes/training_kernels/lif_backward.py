"""The neuron's gradient in training, channels last, and what comes after it in the same pass.

The backward recomputes the membranes of all timesteps in registers, from the same inputs that the
forward had: nothing but those is kept. :mod:`ttsnn.lif_attrs` has the equations. A gradient that
arrives on another way is added, and the sums of a batch norm's gradient over its pixels are taken
while the values are there.
"""

from __future__ import annotations

from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.ops.legalize_lif import NeuronEquations
from ttsnn.passes.tir.body import load, splat, vector
from ttsnn.passes.training_kernels.arrays import WIDE, Arrays
from ttsnn.passes.training_kernels.batch_norm import Normaliser, input_grad
from ttsnn.passes.training_kernels.lif_forward import TrainedNeuron

__all__ = ["lif_train_backward"]


def lif_train_backward(neuron: TrainedNeuron, a: Arrays) -> PrimFunc:
    """The function of the neuron's gradient.

    Its arguments are (x[, gamma, beta, mean, rstd][, v0], dspikes[, dv_last][, side]
    [, y, y_mean, y_rstd][, dgamma, dbeta]), then ([dx][, dv0][, dgamma, dbeta]). dx is the
    gradient of what enters the neuron, with a batch norm that of its result, plus ``side``. With
    ``sums`` it is the gradient of the result of a batch norm of y (of x, with ``"own"``) too, and
    dgamma and dbeta are those of that batch norm. Where dx is that of the batch norm's input,
    which is x, they are arguments.

    Args:
        neuron: what to compute.
        a: arrays of x's shape [1, T · N, H, W, C].
    """
    b, attrs, dtype = a.b, neuron.attrs, a.dtype
    x = a.image("x")
    norm = Normaliser(a) if neuron.norm else None
    v0 = a.state("v0") if neuron.v0 else None
    dspikes = a.image("dspikes")
    dv_last = a.state("dv_last") if neuron.v_last else None
    side = a.image("side") if neuron.side else None
    normed, centre, rstd = x, None, None
    if neuron.sums == "own":
        assert norm is not None  # without a batch norm of its own it has none to sum for
        centre, rstd = norm.mean, norm.rstd
    elif neuron.sums:
        normed, centre, rstd = a.image("y"), a.channel("y_mean"), a.channel("y_rstd")
    through: list[Var] = []
    if neuron.dx == "input":
        assert norm is not None  # it is that of the batch norm before the neuron
        through = [norm.gamma, norm.mean, norm.rstd, a.channel("to_gamma"), a.channel("to_beta")]
    dx = a.image("dx") if neuron.dx else None
    dv0 = a.state("dv0") if neuron.dv0 else None
    grads = [a.channel(name) for name in ("dgamma", "dbeta")] if neuron.sums else []
    sums = a.sums(2) if neuron.sums else None
    timing = attrs.reset_timing

    def element(at: Expr, c: Expr, lanes: int) -> None:
        def const(value: float) -> Expr:
            return splat(value, dtype, lanes)

        eq = NeuronEquations(attrs, const(attrs.decay), const(attrs.v_threshold))
        v = a.local("v", lanes, a.steps + 1)
        m, h0, h = (a.local(name, lanes, a.steps) for name in ("m", "h0", "h"))
        gv, gs, gh = (a.local(name, lanes) for name in ("gv", "gs", "gh"))
        v.set(const(0.0) if v0 is None else load(v0, vector(at, lanes)))
        with b.loop(a.steps, "t", a.kind) as t:
            value = load(x, vector(at + t * a.step, lanes))
            m.set(value if norm is None else norm(value, c, lanes), t)
            start = v.get(t)
            fired = eq.fires(start)
            if timing == "before_decay":
                start = eq.reset(start, fired)
            h0.set(eq.update(start, m.get(t)), t)
            h.set(eq.reset(h0.get(t), fired) if timing == "after_decay" else h0.get(t), t)
            after = h.get(t)
            v.set(eq.reset(after, eq.fires(after)) if timing == "after_fire" else after, t + 1)
        gv.set(const(0.0) if dv_last is None else load(dv_last, vector(at, lanes)))
        wide = [a.local(name, lanes, dtype=WIDE) for name in ("to_gamma", "to_beta")]
        if sums is not None:
            for total in wide:
                total.set(splat(0.0, WIDE, lanes))
        with b.loop(a.steps, "back", a.kind) as back:
            t = a.steps - 1 - back
            where = vector(at + t * a.step, lanes)
            slope = b.bind(eq.surrogate(h.get(t)), "slope")
            gs.set(load(dspikes, where))
            gh.set(gv.get())
            if timing == "after_fire":
                to_a, to_s, _ = eq.reset_back(h.get(t), eq.fires(h.get(t)), gv.get())
                gh.set(to_a)
                if not attrs.detach_reset:
                    gs.add(to_s)
            gh.add(gs.get() * slope)
            # from here on gs is the gradient of the spike of the step before
            gs.set(const(0.0))
            fired = eq.fires(v.get(t))
            if timing == "after_decay":
                to_a, to_s, _ = eq.reset_back(h0.get(t), fired, gh.get())
                gs.set(to_s)
                gh.set(to_a)
            start = eq.reset(v.get(t), fired) if timing == "before_decay" else v.get(t)
            to_v, to_x, _ = eq.update_back(start, m.get(t), gh.get())
            gv.set(to_v)
            if side is not None or sums is not None:
                to_x = b.bind(to_x if side is None else to_x + load(side, where), "dx")
            if dx is not None:
                grad = to_x
                if through:
                    grad = input_grad(a, load(x, where), to_x, through, c, lanes)
                b.store(dx, grad, where)
            if sums is not None:
                shifted = load(normed, where) - load(centre, vector(c, lanes))
                wide[0].add((to_x * shifted).astype(wide[0].type))
                wide[1].add(to_x.astype(wide[0].type))
            if timing == "before_decay":
                to_a, to_s, _ = eq.reset_back(v.get(t), fired, gv.get())
                gs.set(to_s)
                gv.set(to_a)
            if timing != "after_fire" and not attrs.detach_reset:
                gv.add(gs.get() * eq.surrogate(v.get(t)))
        if dv0 is not None:
            b.store(dv0, gv.get(), vector(at, lanes))
        if sums is not None:
            for i, total in enumerate(wide):
                sums.add(i, c, lanes, total.get())

    a.stream(element, sums)
    if sums is not None:
        with a.each_channel(sums) as c:
            to_gamma = sums.total(0, c) * load(rstd, c).astype(WIDE)
            b.store(grads[0], to_gamma.astype(dtype), c)
            b.store(grads[1], sums.total(1, c).astype(dtype), c)
    return a.finish("lif_backward")
