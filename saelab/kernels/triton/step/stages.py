"""The parts of a fused step, to be timed one by one."""

from collections.abc import Callable

from saelab.kernels.triton.step.step import Step


def stages(step: Step) -> dict[str, Callable[[], object]]:
    """The parts of a step without AuxK and clipping; each can be repeated alone.

    They work on the results of the last step. The last part changes the weights.
    """
    pairs, slices = step.invert()
    sums = step.sum_slices(pairs, slices)
    return {
        "encode": lambda: (step.offset.centre(), step.encode()),
        "select": step.select,
        "sort": step.invert,
        "decode": step.decode,
        "update": lambda: (step.sum_slices(pairs, slices), step.update(sums, None)),
    }
