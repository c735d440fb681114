"""Stopping at a good moment: the first signal asks, the second stops."""

import signal
import threading

import pytest

from console.interrupt import Interrupt


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number):
    stop = Interrupt()
    stop.listen()
    stop.check()
    signal.raise_signal(number)
    assert stop.requested
    with pytest.raises(KeyboardInterrupt):
        stop.check()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_either_signal_may_be_the_second():
    stop = Interrupt()
    stop.listen()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_signals_outside_the_main_thread():
    before = signal.getsignal(signal.SIGINT)
    errors = []

    def listen():
        try:
            Interrupt().listen()
        except ValueError as error:  # what Python raises for handlers set in another thread
            errors.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert errors == []
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_happens_before_listening():
    stop = Interrupt()
    with pytest.raises(KeyboardInterrupt):  # Python's own handler
        signal.raise_signal(signal.SIGINT)
    assert not stop.requested
