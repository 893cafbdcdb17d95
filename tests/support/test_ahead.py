import threading

import pytest

from dpsapf.support.ahead import ahead


def test_results_come_in_order_and_the_next_is_made_meanwhile():
    made, second = [], threading.Event()

    def make(item):
        made.append(item)
        if item == 2:
            second.set()
        return 10 * item

    results = ahead(make, [1, 2, 3, 4])
    assert next(results) == 10
    assert second.wait(10), "the second is made although nobody asked"
    assert made == [1, 2], "and no more than that"
    assert list(results) == [20, 30, 40] and made == [1, 2, 3, 4]


@pytest.mark.parametrize("items", [[], [7]])
def test_few_items(items):
    assert list(ahead(str, items)) == [str(item) for item in items]


def test_an_error_comes_where_its_item_is_asked_for():
    results = ahead(lambda item: 1 / item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
