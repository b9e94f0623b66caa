"""Memory that says so where a kernel reads what nothing has written."""

import functools

import torch

# A signalling NaN: numpy, which the interpreter of kernels computes with, warns of any sum with it.
SIGNALS = {
    torch.float32: (torch.int32, 0x7F800001),
    torch.float16: (torch.int16, 0x7C01),
    torch.bfloat16: (torch.int16, 0x7F81),
}


def mark(made):
    """Fill new memory: numbers that no sum accepts, and indices far outside of any tensor."""
    if made.dtype in SIGNALS and made.is_contiguous():
        bits, value = SIGNALS[made.dtype]
        made.view(bits).fill_(value)
    elif not made.dtype.is_floating_point and not made.dtype.is_complex:
        made.fill_(torch.iinfo(made.dtype).max // 3 if made.dtype != torch.bool else 1)
    return made


def mark_all(patch):
    """Let torch hand out marked memory, by a MonkeyPatch."""
    for owner, name in [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")]:
        make = getattr(owner, name)

        @functools.wraps(make)
        def marked(*args, make=make, **kwargs):
            return mark(make(*args, **kwargs))

        patch.setattr(owner, name, marked)
