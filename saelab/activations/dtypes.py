"""The stored dtypes: HDF5 and raw bytes."""

import h5py
import numpy as np
from jaxtyping import Float32, UInt8

from saelab.activations.format import Dtype

ITEMSIZE: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


def itemsize(dtype: Dtype) -> int:
    """Bytes of one stored number."""
    return ITEMSIZE[dtype]


def hdf5_type(dtype: Dtype) -> h5py.h5t.TypeID:
    """The HDF5 type of the stored numbers, little endian.

    bfloat16 is a custom float (sign bit 15, exponent 7-14 with bias 127, mantissa 0-6), so that
    every HDF5 tool prints its true values.
    """
    if dtype == "float32":
        return h5py.h5t.IEEE_F32LE
    if dtype == "float16":
        return h5py.h5t.IEEE_F16LE
    custom = h5py.h5t.IEEE_F32LE.copy()
    custom.set_fields(15, 7, 8, 0, 7)
    custom.set_size(2)
    custom.set_ebias(127)
    return custom


def numbers(raw: UInt8[np.ndarray, "row byte"], dtype: Dtype) -> Float32[np.ndarray, "row d_in"]:
    """The rows whose bits are in `raw`, as float32."""
    if dtype == "bfloat16":
        # bfloat16 is the upper half of a float32.
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f4" if dtype == "float32" else "<f2").astype(np.float32)
