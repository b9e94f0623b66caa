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
from saelab.kernels.triton.step import aux_k
from saelab.kernels.triton.weights import Weights

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
done = set()


def compile_it(kernel, *given, grid, warmup=False, num_warps=4, **named):
    """In place of a launch: compile the kernel for these arguments, once."""
    assert grid
    assert not warmup
    values = inspect.signature(kernel.fn).bind(*given, **named).arguments
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    types = {
        name: TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i64"
        for name, value in values.items()
        if name not in constants
    }
    key = kernel.fn.__name__, tuple(types.values()), tuple(constants.items())
    if key not in done:
        done.add(key)
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        triton.compile(source, target=TARGET, options={"num_warps": num_warps})
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


if __name__ == "__main__":
    JITFunction.run = compile_it
    used = SimpleNamespace(underused=torch.zeros(40, dtype=torch.bool))
    for dtype in (torch.float32, torch.bfloat16):
        run_aux_k(dtype, 0, signed=False)
        run_aux_k(dtype, 10**9, signed=True, usage=used)
