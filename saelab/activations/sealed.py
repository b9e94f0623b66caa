"""Files whose every byte is covered by a checksum: an HDF5 file followed by a 104-byte trailer.

The trailer's seal is the sha256 of everything except the payload (the trailer's own first 72 bytes
included). The payload lies between two sealed parts. It has an XXH3 checksum per block of rows,
kept in a dataset that is sealed too. HDF5 tools ignore bytes after the end of the HDF5 file.
"""

import hashlib
import os
import stat
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5py
import xxhash

from saelab.activations.format import DamagedStoreError
from saelab.activations.hdf5_layout import Image

MAGIC = b"saelab\x00\x01"
TRAILER = struct.Struct("<8sQQQQ32s")
SEAL_BYTES = 32
TRAILER_BYTES = TRAILER.size + SEAL_BYTES
_CHUNK = 2**20


@dataclass(frozen=True)
class Trailer:
    """The last bytes of a file: enough to list a store without parsing HDF5.

    Attributes:
        payload_offset: start of the payload, 4 KiB-aligned; 0 without a payload.
        content_digest: `content_digest` of the manifest, 32 bytes.
    """

    unit: int
    rows: int
    payload_offset: int
    payload_bytes: int
    content_digest: bytes

    def pack(self) -> bytes:
        """The trailer without its seal."""
        numbers = (self.unit, self.rows, self.payload_offset, self.payload_bytes)
        return TRAILER.pack(MAGIC, *numbers, self.content_digest)


def checksum(data: memoryview | bytes) -> int:
    """The checksum of a block: XXH3, 64 bits; damage goes unnoticed with probability 2^-64.

    It runs at 8 GB/s per core (zlib's CRC-32: 2), so reading stays near the speed of the disk.
    """
    return xxhash.xxh3_64_intdigest(data)


def seal_file(
    image: Image, payload: memoryview | bytes, *, unit: int, rows: int, content_digest: str
) -> tuple[list[memoryview | bytes], bytes]:
    """The parts of the finished file in order, and its seal."""
    offset = len(image.before) if image.payload_bytes else 0
    digest = bytes.fromhex(content_digest)
    trailer = Trailer(unit, rows, offset, image.payload_bytes, digest).pack()
    seal = hashlib.sha256(image.before + image.after + trailer).digest()
    return [image.before, payload, image.after, trailer + seal], seal


def write_parts(path: Path, parts: Sequence[memoryview | bytes]) -> None:
    """Write a new read-only file and make it durable; disk space is reserved first.

    Raises:
        OSError: the disk is full or fails; the caller must remove the file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        if sys.platform != "darwin":
            os.posix_fallocate(descriptor, 0, sum(len(part) for part in parts))
        offset = 0
        for part in parts:
            view = memoryview(part)
            while len(view):
                written = os.pwrite(descriptor, view[: 2**30], offset)
                offset, view = offset + written, view[written:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SealedFile:
    """A sealed file, opened for reading after a check that it is a regular file with a trailer.

    Raises:
        DamagedStoreError: the file is missing, a link, too short, or its trailer is invalid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags)
        except FileNotFoundError:
            raise DamagedStoreError(f"{path} is missing.") from None
        except OSError as error:
            raise DamagedStoreError(f"{path} cannot be opened: {error.strerror}.") from None
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self.damaged("is not a regular file")
            self.size = status.st_size
            self.trailer, self.seal = self._read_trailer()
        except BaseException:
            os.close(self._descriptor)
            raise

    def damaged(self, problem: str) -> DamagedStoreError:
        """The error for this file."""
        return DamagedStoreError(f"{self.path} {problem}.")

    def _read_trailer(self) -> tuple[Trailer, bytes]:
        if self.size <= TRAILER_BYTES:
            raise self.damaged("is too short to be a file of a store")
        raw = bytearray(TRAILER_BYTES)
        self.read_into(self.size - TRAILER_BYTES, memoryview(raw))
        magic, unit, rows, offset, nbytes, digest = TRAILER.unpack(raw[: TRAILER.size])
        if magic != MAGIC:
            raise self.damaged("does not end with a trailer of this format: truncated or foreign")
        if offset + nbytes > self.size - TRAILER_BYTES:
            raise self.damaged("declares a payload that ends beyond the file")
        return Trailer(unit, rows, offset, nbytes, digest), bytes(raw[TRAILER.size :])

    def check_seal(self) -> None:
        """Compare everything except the payload with the seal; DamagedStoreError if they differ."""
        digest = hashlib.sha256()
        trailer = self.trailer
        payload_end = trailer.payload_offset + trailer.payload_bytes
        buffer = memoryview(bytearray(_CHUNK))
        for start, stop in ((0, trailer.payload_offset), (payload_end, self.size - SEAL_BYTES)):
            for position in range(start, stop, _CHUNK):
                view = buffer[: min(_CHUNK, stop - position)]
                self.read_into(position, view)
                digest.update(view)
        if digest.digest() != self.seal:
            raise self.damaged("was altered: its header does not match its seal")

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`; DamagedStoreError if the file ends first."""
        done = 0
        while done < len(out):
            n = os.preadv(self._descriptor, [out[done:]], offset + done)
            if n == 0:
                raise self.damaged("is truncated")
            done += n

    def hdf5(self) -> h5py.File:
        """The HDF5 part, read through the open descriptor, so without a lock or a race."""
        raw = open(self._descriptor, "rb", buffering=0, closefd=False)  # noqa: SIM115
        return h5py.File(raw, "r")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> "SealedFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
