"""Measures claims one after another; finished ones are kept, and failures stop no others."""

import errno
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from saelab.activations.corpus import load_corpus
from saelab.claims.claim import Claim
from saelab.claims.code import own_digest, shared_digest
from saelab.claims.measured import SHIPPED, Failed, Measured, read_row, read_rows
from saelab.claims.setting import Setting
from saelab.claims.subject import N_TOKENS, TEXT, TINY, Subject
from saelab.config import UsageError
from saelab.console import duration, note, say
from saelab.files import atomic_write_json
from saelab.formats.json_file import canonical_digest

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the disk, after which no other claim can be measured."""
GUESS = 60.0
"""Seconds of a claim that has never been measured."""


@dataclass(frozen=True)
class ClaimOptions:
    """What the outcomes depend on beside the code.

    Attributes:
        n_seeds: seeds per claim.
        model: `tiny`, or a model for claims that any model can be measured for.
        text: the model's text.
        n_tokens: tokens of its store.
        device: `cpu`, `cuda`, ...; `auto` takes the GPU if there is one.
    """

    n_seeds: int = 3
    model: str = TINY
    text: str = TEXT
    n_tokens: int = N_TOKENS
    device: str = "auto"


class Workspace:
    """The directory of the outcomes, and of the work of one version of the code.

    `outcomes/NAME.json` are the finished claims. `work-VERSION` has stores and runs, which claims
    share; that of another version is removed.
    """

    def __init__(self, out: Path, options: ClaimOptions) -> None:
        self.out, self.options = out, options
        self.code = shared_digest()
        self.work = out / f"work-{self.code[:12]}"
        self.subject = Subject(
            self.work,
            model=options.model,
            text=options.text,
            n_tokens=options.n_tokens,
            device=options.device,
        )

    def check(self) -> None:
        """Refuse what would make every claim fail.

        Raises:
            UsageError: there is no such device, model, or text.
        """
        if self.subject.is_tiny:
            assert self.subject.resolved_device
        else:
            load_corpus(self.subject.text, self.subject.lm)

    def remove_others(self, *, own: bool) -> None:
        """Remove the work of other versions; with `own`, this one's too."""
        for path in self.out.glob("work-*"):
            if own or path != self.work:
                note(f"{path}, {'to be made anew' if own else 'of other code'}, is removed.")
                shutil.rmtree(path)

    def setting(self, claim: Claim) -> Setting:
        """The claim's setting; its directory is that of its own code's version."""
        directory = self.work / f"{claim.name}-{own_digest(claim)[:12]}"
        return Setting(directory, self.subject, self.options.n_seeds)

    def digest(self, claim: Claim) -> str:
        """The digest of everything that the claim's outcome depends on."""
        facts = vars(self.options) | {
            "device": self.subject.resolved_device.type,
            "code": [self.code, own_digest(claim)],
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
        return canonical_digest({"claim": claim.name, **facts})

    def path(self, claim: Claim) -> Path:
        """The file of the claim's outcome."""
        return self.out / "outcomes" / f"{claim.name}.json"

    def kept(self, claim: Claim) -> Measured | None:
        """The finished row; None if there is none of this code and these options."""
        path = self.path(claim)
        if not path.is_file():
            return None
        try:
            row = read_row(path)
        except UsageError as error:
            note(f"{error} {claim.name} is measured again.")
            return None
        return row if row.digest == self.digest(claim) else None


def measure_claims(
    claims: Sequence[Claim], workspace: Workspace, *, again: bool = False
) -> Iterator[Measured | Failed]:
    """Every claim's row, as soon as it is measured; `again` measures finished ones too.

    Progress, with the time left, goes to standard error.
    """
    workspace.remove_others(own=again)
    kept = {} if again else {c.name: row for c in claims if (row := workspace.kept(c))}
    left = _TimeLeft([c.name for c in claims if c.name not in kept])
    if kept:
        note(f"{len(kept)} of {len(claims)} claims are measured already (--again measures anew).")
    for number, claim in enumerate(claims, 1):
        if claim.name in kept:
            yield kept[claim.name]
            continue
        say(f"Claim {number} of {len(claims)}, {left.text()}: {claim.name} ({claim.paper})")
        with left.measuring(claim.name):
            found = _measured(claim, workspace)
        if isinstance(found, Failed):
            say(f"{claim.name} failed: {found.error}")
        yield found


def _measured(claim: Claim, workspace: Workspace) -> Measured | Failed:
    started = time.monotonic(), time.process_time()
    options, subject = workspace.options, workspace.subject
    try:
        outcome = claim.outcome(workspace.setting(claim))
    except OSError as error:
        if error.errno in FULL:
            raise
        return Failed(claim.name, f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 - any claim's code may run here
        return Failed(claim.name, f"{type(error).__name__}: {error}")
    row = Measured(
        claim.name,
        claim.paper,
        claim.says,
        claim.figure,
        claim.on if subject.is_tiny else subject.model,
        outcome.verdict,
        outcome.why(),
        outcome,
        options.n_seeds,
        subject.resolved_device.type,
        round(time.monotonic() - started[0], 1),
        round(time.process_time() - started[1], 1),
        workspace.digest(claim),
    )
    atomic_write_json(workspace.path(claim), row.values())
    return row


class _TimeLeft:
    """The time that claims will take: what they took before, times this machine's ratio to it."""

    def __init__(self, names: Sequence[str]) -> None:
        before = {row.name: row.seconds for row in read_rows(SHIPPED)}
        usual = sum(before.values()) / len(before) if before else GUESS
        self._left = {name: before.get(name, usual) for name in names}
        self._expected = self._taken = 0.0

    def text(self) -> str:
        """For a line of progress."""
        ratio = self._taken / self._expected if self._expected else 1.0
        return f"about {duration(ratio * sum(self._left.values()))} left"

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """The work on one claim."""
        started = time.monotonic()
        yield
        self._expected += self._left.pop(name)
        self._taken += time.monotonic() - started


def table_values(rows: Sequence[Measured], failed: Sequence[Failed]) -> Mapping[str, object]:
    """JSON-ready values of a table of claims."""
    found: dict[str, object] = {"claims": [row.values() for row in rows]}
    if failed:
        found["failed"] = [vars(one) for one in failed]
    return found
