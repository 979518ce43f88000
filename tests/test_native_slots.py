"""Slots: small numbers for those who come and go, against a list kept by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.native.slots import Slots


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_slots_are_a_list_with_holes(steps: list[tuple[bool, int]]) -> None:
    slots: Slots[str] = Slots()
    model: list[str | None] = []
    for serial, (comes, number) in enumerate(steps, 1):
        who = f"holder{number}"
        if comes and who not in slots:
            hole = model.index(None) if None in model else len(model)
            model[hole : hole + 1] = [who]
            assert slots.add(who, serial) == (hole, serial), "the lowest that is free"
            assert slots.known(hole, serial) == who
            assert slots.known(hole, serial + 1) is None
        elif not comes and who in slots:
            model[model.index(who)] = None
            slots.remove(who)
        assert len(slots) == sum(each is not None for each in model)
        assert sorted(slots) == sorted(each for each in model if each is not None)
        for slot, holder in enumerate(model):
            if holder is None:
                assert slots.known(slot, serial) is None
                with pytest.raises(KeyError):
                    slots.at(slot)
            else:
                assert slots.at(slot) == holder
                assert slots.slot(holder) == slot


def test_a_later_holder_of_a_slot_is_not_taken_for_the_former() -> None:
    slots: Slots[str] = Slots()
    slots.add("first", 0)
    slots.mark("first", 7)
    assert slots.known(0, 7) == "first"
    assert slots.find("first") == (0, 7)
    slots.remove("first")
    assert slots.add("second", 8) == (0, 8)
    assert slots.known(0, 7) is None
    assert slots.known(0, 8) == "second"


def test_nobody_has_no_slot() -> None:
    slots: Slots[str] = Slots()
    for ask in (slots.slot, slots.remove, lambda who: slots.mark(who, 1)):
        with pytest.raises(KeyError):
            ask("nobody")
    assert "nobody" not in slots
    assert slots.find("nobody") is None


def test_it_may_be_changed_while_it_is_looked_through() -> None:
    slots: Slots[int] = Slots()
    numbers = list(range(50))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        slots.add(number, number)
    for number in slots:
        slots.remove(number)
    assert len(slots) == 0
