"""Does the backlog keep its order and its bounds, whatever is dropped, put back or expires in between?"""

from __future__ import annotations

import random

from pegashm.transport.backlog import Backlog, Waiting


def handles(taken: list[Waiting]) -> list[int]:
    return [waiting.handle for waiting in taken]


def test_oldest_first_in_bounded_batches() -> None:
    backlog = Backlog(1000, 60.0)
    assert all(backlog.add(handle, 100, now=handle) for handle in range(10))
    assert not backlog.add(10, 1, now=10.0), "it is full"
    assert backlog.add(3, 100, now=10.0), "it waits already"
    assert [0, 1, 2] == handles(backlog.take(250, 512)), "the last one may go beyond"
    assert [3, 4] == handles(backlog.take(10_000, 2))
    assert backlog.add(10, 500, now=10.0), "what was taken left room"


def test_what_left_another_way_leaves_room() -> None:
    backlog = Backlog(300, 60.0)
    for handle in (1, 2, 3):
        backlog.add(handle, 100, now=0.0)
    backlog.drop([2, 77])
    assert backlog.add(4, 100, now=1.0)
    assert [1, 3, 4] == handles(backlog.take(10_000, 512))


def test_those_put_back_are_the_oldest() -> None:
    backlog = Backlog(1000, 60.0)
    for handle in range(6):
        backlog.add(handle, 100, now=0.0)
    taken = backlog.take(300, 512)
    backlog.put_back(taken[1:])
    assert [1, 2, 3, 4, 5] == handles(backlog.take(10_000, 512))


def test_what_waited_too_long_waits_no_more() -> None:
    backlog = Backlog(1000, 60.0)
    for handle in range(5):
        backlog.add(handle, 100, now=10.0 * handle)
    assert 0 == backlog.expire(60.0)
    assert 2 == backlog.expire(75.0)
    assert [2, 3, 4] == handles(backlog.take(10_000, 512))


def test_any_order_of_calls(seed: int) -> None:
    """Beside a plain list, and the bytes add up at the end: exactly 1000 fit again."""
    chance = random.Random(seed)
    backlog = Backlog(1000, 60.0)
    model: list[int] = []
    for number in range(5000):
        match chance.randrange(4):
            case 0 | 1:
                if backlog.add(number, 10, now=0.0):
                    model.append(number)
                else:
                    assert len(model) == 100
            case 2:
                taken = backlog.take(10 * chance.randint(1, 9), 512)
                assert model[: len(taken)] == handles(taken)
                kept = chance.randint(0, len(taken))
                backlog.put_back(taken[kept:])
                model = model[kept:]
            case _:
                gone = chance.sample(model, min(len(model), 2))
                backlog.drop([*gone, -1])
                model = [handle for handle in model if handle not in gone]
        assert len(model) == len(backlog)
    backlog.drop(list(model))
    assert 0 == len(backlog)
    assert sum(backlog.add(-number, 10, now=0.0) for number in range(1, 200)) == 100
