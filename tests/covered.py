"""How many of saelab's lines the tests run: `-p covered`, which fails below FLOOR.

slipcover takes its probes out of a function once they have been hit (from Python 3.12 on the
interpreter itself does), so the suite takes little longer. Lines that only a process started by a
test runs do not count, neither do kernels' bodies, which Triton's interpreter reads as text.
"""

from collections import defaultdict
from pathlib import Path

import pytest
from jaxtyping._import_hook import _JaxtypingLoader
from slipcover import Slipcover

FLOOR = 92
"""Percent of the lines; measured without a GPU: 92.9."""
SOURCE = Path(__file__).parents[1] / "saelab"
NOT_COUNTED = ["@abc.abstractmethod", "if TYPE_CHECKING:"]

_ran: dict[str, set[int]] = defaultdict(set)
_all: dict[str, set[int]] = defaultdict(set)


def pytest_configure(config):
    """Put probes into the modules that the import hook of the type checks loads."""
    seen = config.covered = Slipcover(source=[str(SOURCE)], exclude_also=NOT_COUNTED)
    read, run = _JaxtypingLoader.get_code, _JaxtypingLoader.exec_module

    def get_code(self, fullname):
        code = read(self, fullname)
        if code is None or SOURCE not in Path(self.path).parents:
            return code
        return seen.instrument(code)

    def exec_module(self, module):
        seen.register_module(module)
        return run(self, module)

    _JaxtypingLoader.get_code, _JaxtypingLoader.exec_module = get_code, exec_module


def add(files):
    """Join the lines that one process has run, and has not, to those of the others."""
    for file, (ran, missed) in files.items():
        _ran[file].update(ran)
        _all[file].update(ran, missed)


def share():
    """Percent of all lines."""
    return 100 * sum(map(len, _ran.values())) / max(1, sum(map(len, _all.values())))


def pytest_sessionfinish(session):
    """A worker tells its lines to the process that started it; a share below FLOOR is an error."""
    found = session.config.covered.get_coverage()["files"]
    files = {name: (f["executed_lines"], f["missing_lines"]) for name, f in found.items()}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["covered"] = files
        return
    add(files)
    if share() < FLOOR and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker has ended."""
    add(getattr(node, "workeroutput", {}).get("covered", {}))


def pytest_terminal_summary(terminalreporter):
    """The files with the most lines that nothing ran, and the share of all."""
    left = {file: len(lines - _ran[file]) for file, lines in _all.items()}
    for file in sorted(left, key=left.__getitem__, reverse=True)[:10]:
        terminalreporter.write_line(f"{left[file]:6d} of {len(_all[file])} lines not run: {file}")
    verdict = "" if share() >= FLOOR else f": below the floor of {FLOOR} %"
    n_ran, n_all = (sum(map(len, x.values())) for x in (_ran, _all))
    terminalreporter.write_line(f"{share():.1f} % of {n_all} lines run ({n_ran}){verdict}")
