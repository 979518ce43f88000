"""The event log: order, bounds, slow readers, and that closing wakes whoever waits."""

from __future__ import annotations

import threading

from router.events import Event, EventKind, EventLog
from router.model import AttachmentKey

KEY = AttachmentKey("pod", "eth0")


def filled(count: int, held: int = 4) -> EventLog:
    log = EventLog(held=held, clock=lambda: 1.5)
    for number in range(count):
        log.record(EventKind.ATTACHED, f"event {number}", key=KEY, node="a")
    return log


def sequences(log: EventLog, after: int | None) -> list[int]:
    with log.subscribe(after) as events:
        return [event.sequence for event in iter(lambda: events.next(0), None)]


def test_an_event_says_what_happened_when() -> None:
    event = filled(0).record(EventKind.TABLE_REFUSED, "why", node="b")
    assert event == Event(1, 1.5, EventKind.TABLE_REFUSED, None, "b", "why")


def test_replay_starts_after_a_sequence_and_holds_only_the_newest() -> None:
    assert sequences(filled(3), 0) == [1, 2, 3]
    assert sequences(filled(3), 2) == [3]
    assert sequences(filled(3), 3) == []
    assert sequences(filled(10), 0) == [7, 8, 9, 10]
    assert sequences(filled(10), None) == []
    assert sequences(filled(0), 0) == []


def test_a_sequence_of_an_earlier_run_replays_everything() -> None:
    assert sequences(filled(3), 900) == [1, 2, 3]


def test_a_slow_reader_loses_the_oldest_and_sees_it() -> None:
    log = filled(1)
    with log.subscribe(0) as events:
        assert events.next(0) is not None
        for _ in range(9):
            log.record(EventKind.DETACHED)
        found = events.next(0)
        assert found is not None
        assert found.sequence == 7
        assert events.missed == 5


def test_a_waiting_reader_gets_the_next_event() -> None:
    log = filled(0)
    read: list[Event] = []
    with log.subscribe() as events:
        reader = threading.Thread(target=lambda: read.extend(iter(events)))
        reader.start()
        log.record(EventKind.STARTED)
        log.record(EventKind.STOPPING)
        log.close()
        reader.join(20)
        assert not reader.is_alive()
        assert [event.kind for event in read] == [EventKind.STARTED, EventKind.STOPPING]
        assert events.ended


def test_closing_a_subscription_wakes_its_reader_only() -> None:
    log = filled(0)
    with log.subscribe() as one, log.subscribe() as other:
        reader = threading.Thread(target=lambda: list(one))
        reader.start()
        one.close()
        reader.join(20)
        assert not reader.is_alive()
        assert one.ended
        log.record(EventKind.STARTED)
        assert one.next(0) is None
        assert other.next(0) is not None
        assert not other.ended


def test_no_event_within_the_time_is_none() -> None:
    with filled(0).subscribe() as events:
        assert events.next(0.001) is None
        assert not events.ended


def test_many_writers_lose_nothing() -> None:
    log = EventLog()
    with log.subscribe() as events:
        writers = [
            threading.Thread(target=lambda: [log.record(EventKind.ATTACHED) for _ in range(100)]) for _ in range(8)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        log.close()
        assert [event.sequence for event in events] == list(range(1, 801))
        assert events.missed == 0
