"""Several blocks at once."""

import threading
import time

import pytest

from saelab.activations.parallel import WORKERS, one_ahead, parallel_results, results_ahead


def test_results_come_in_the_order_of_the_items():
    assert list(parallel_results(lambda n: (time.sleep(0.001 * (9 - n)), n)[1], range(10))) == [
        *range(10)
    ]


def test_items_are_worked_on_at_once():
    """Each waits for the others: alone, none would ever be done."""
    together = threading.Barrier(WORKERS, timeout=60)
    assert len([*parallel_results(lambda _: together.wait(), range(WORKERS))]) == WORKERS


@pytest.mark.parametrize("stop", ["by an error", "by the caller"])
def test_nothing_is_at_work_after_an_early_end(stop):
    """What is read lands in memory that the caller may use for something else then."""
    ended, started = [], []

    def work(n):
        started.append(n)
        if n == 0 and stop == "by an error":
            raise OSError(n)
        time.sleep(0.02)
        ended.append(n)

    results = parallel_results(work, range(50))
    if stop == "by an error":
        with pytest.raises(OSError, match="0"):
            list(results)
        started.remove(0)
    else:
        next(results)
        results.close()
    assert sorted(started) == sorted(ended)
    assert len(ended) < 50


def test_large_results_come_in_order_and_few_of_them_wait():
    made = []
    results = results_ahead(lambda n: made.append(n) or n, range(50))
    assert next(results) == 0
    assert len(made) <= 2 * WORKERS + 1
    assert list(results) == [*range(1, 50)]
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_a_single_large_result_needs_no_thread():
    assert list(results_ahead(lambda _: threading.current_thread(), [1])) == [
        threading.current_thread()
    ]


def test_the_next_item_is_made_while_the_caller_works_on_one():
    made = []
    items = one_ahead(made.append(n) or n for n in range(3))
    assert next(items) == 0
    while len(made) < 2:
        time.sleep(0.001)
    assert list(items) == [1, 2]
    failing = one_ahead(1 // (1 - n) for n in range(3))
    assert next(failing) == 1
    with pytest.raises(ZeroDivisionError):
        next(failing)
