"""Compiles what it would launch for a GPU that need not be there: run it without TRITON_INTERPRET.

The interpreter accepts kernels that the compiler refuses, such as two types of one variable.
"""

import inspect
import sys
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.rules import FusedRule
from saelab.kernels.triton.figures import add_by_kernels_
from saelab.kernels.triton.step import aux_k
from saelab.kernels.triton.step.gradients import Sums
from saelab.kernels.triton.step.rules import AdamRules, Launch, Rules
from saelab.kernels.triton.step.step import Step
from saelab.kernels.triton.weights import Weights

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
done = set()


def type_of(value):
    """An argument's type, as a launch decides it."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if value < 2**31 else "i64"


def compile_it(kernel, *given, grid, warmup=False, num_warps=4, num_stages=3, **named):
    """In place of a launch: compile the kernel for these arguments, once."""
    assert grid
    assert not warmup
    values = inspect.signature(kernel.fn).bind(*given, **named).arguments
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    types = {name: type_of(value) for name, value in values.items() if name not in constants}
    key = kernel.fn.__name__, tuple(types.values()), tuple(constants.items())
    if key not in done:
        done.add(key)
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        triton.compile(source, target=TARGET, options=options)
        sys.stdout.write(f"{kernel.fn.__name__}\n")


def run_aux_k(dtype, read_at, *, signed, usage=None):
    """AuxK's part of a step."""
    aux_k.READ_AT = dict.fromkeys(aux_k.READ_AT, read_at)
    batch, d, m = 4, 24, 40
    ones = torch.ones
    w = Weights.start(ones(d, m), ones(m), ones(m, d), ones(d), dtype)
    if usage is not None:
        object.__setattr__(w, "usage", usage)
    step = aux_k.AuxStep(w, aux_k.AuxRules(2, 0.5, 100), m, LatentExchange(), signed=signed)
    x, codes = ones(batch, d, dtype=dtype), (ones(batch, 2), ones(batch, 2, dtype=torch.int32))
    z, _ = step.choose(codes, x, ones(batch, m, dtype=dtype))
    step.run(z, x, x)


def run_update(dtype, moments, *, tied):
    """The pass that moves the weights, with moments of this dtype."""
    batch, d, m, k = 4, 24, 40, 2
    ones = torch.ones
    W_enc = None if tied else ones(d, m)
    w = Weights.start(W_enc, ones(m), ones(m, d), ones(d), dtype, moments)
    rule = FusedRule(k=k, tied=tied)
    rules = Rules(rule, 1.0, AdamRules(moments=moments), clip_norm=1.0)
    step = Step(w, rules, batch, Launch(), LatentExchange())
    codes, first = step.codes, torch.zeros(m + 1, dtype=torch.int32)
    out = codes.residual
    rows = out.residual, step.offset.centred
    pieces = first, ones(1, 2 * d), ones(1, 3)
    given = codes.values, out.gradient, codes.error_rows
    step.update(Sums(first, first, *given, *rows, *pieces), None)


def run_figures(dtype):
    """What is reported of a step."""
    rows, one = torch.ones(4, 24, dtype=dtype), torch.ones(())
    add_by_kernels_(torch.ones(4).double(), rows, torch.ones(24), torch.ones(4, 2), one, one)


if __name__ == "__main__":
    JITFunction.run = compile_it
    used = SimpleNamespace(underused=torch.zeros(40, dtype=torch.bool))
    for dtype in (torch.float32, torch.bfloat16):
        run_figures(dtype)
        run_aux_k(dtype, 0, signed=False)
        run_aux_k(dtype, 10**9, signed=True, usage=used)
        for moments in (torch.float32, torch.bfloat16):
            for tied in (False, True):
                run_update(dtype, moments, tied=tied)
