"""The version of the code that a claim's outcome depends on, as digests of source files."""

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path

import saelab
from saelab.claims.claim import BUILT_IN, Claim

LEFT_OUT = ("cli", "figures")
"""Packages that no measurement needs."""
KINDS = (".py", ".safetensors", ".json")


def shared_digest() -> str:
    """sha256 (hex) of saelab's files, without `LEFT_OUT` and the claims' own files."""
    root = Path(saelab.__file__).parent
    own = {place.partition(":")[0].rpartition(".")[2] + ".py" for place in BUILT_IN.values()}
    claims = root / "claims"
    left_out = {claims / name for name in own} | {claims / "measured.json", claims / "claim.py"}
    paths = sorted(p for p in root.rglob("*") if p.suffix in KINDS and p not in left_out)
    return _digest(root, (p for p in paths if p.relative_to(root).parts[0] not in LEFT_OUT))


def own_digest(claim: Claim) -> str:
    """sha256 (hex) of the file in which a claim measures."""
    path = Path(inspect.getsourcefile(claim.measure) or "")
    return _digest(path.parent, [path])


def _digest(root: Path, paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.relative_to(root)}\n".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
