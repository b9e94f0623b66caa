"""A signal ends the work wherever it comes."""

import os
import signal
import sys
import time

import pytest

from saelab.interrupt import Stopped, stopped_by_signal


class Deaf:
    """Python ignores all errors in its end, as in that of a collection's garbage."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        for _ in range(1000):
            pass


def work(number):
    with stopped_by_signal():
        Deaf(number)
        time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_comes_where_errors_are_ignored_comes_again(number):
    tell = sys.unraisablehook
    expected = KeyboardInterrupt if number == signal.SIGINT else Stopped
    with pytest.raises(expected):
        work(number)
    assert sys.unraisablehook is tell


def test_other_errors_that_are_ignored_are_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: told.append(error.exc_type))

    class Fails:
        def __del__(self):
            raise ValueError

    with stopped_by_signal():
        Fails()
    assert told == [ValueError]


def test_a_signal_ignored_at_the_end_of_the_work_leaves_nothing_behind():
    with stopped_by_signal():
        Deaf(signal.SIGTERM)
    time.sleep(0.2)
