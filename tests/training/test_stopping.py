"""Requests to stop: a flag, and what else a signal does meanwhile."""

import os
import signal
import threading
import time

import pytest

from dst.signals import KilledError, StalledError, waiting
from dst.training import stopping
from dst.training.stopping import StopFlag


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP"])
def test_a_request_pulls_out_of_a_wait_that_lasts_and_of_nothing_else(name, monkeypatch):
    monkeypatch.setattr(stopping, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(stopping, "_AGAIN_S", 0.05)
    lock = threading.Lock()
    lock.acquire()
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(0.2)  # at work, not waiting
        assert stop.requested == name
        with pytest.raises(StalledError), waiting():
            lock.acquire()
        assert stop.requested == name
        time.sleep(0.2)


def test_without_a_request_a_wait_lasts_as_long_as_it_lasts(monkeypatch):
    monkeypatch.setattr(stopping, "_PATIENCE_S", 0.01)
    with StopFlag() as stop, waiting():
        time.sleep(0.1)
    assert stop.requested is None


@pytest.mark.parametrize("name", ["SIGQUIT", "SIGUSR1", "SIGXCPU"])
def test_other_signals_that_would_end_it_are_named(name):
    with StopFlag(), pytest.raises(KilledError, match=f"killed by {name}"):
        signal.raise_signal(signal.Signals[name])
    assert signal.getsignal(signal.Signals[name]) == signal.SIG_DFL


def test_no_poke_comes_once_the_handlers_are_gone(monkeypatch):
    """It would end the process: by then SIGUSR2 does what it does outside."""
    late = []
    before = signal.signal(signal.SIGUSR2, lambda *_: late.append("late"))
    send = signal.pthread_kill

    def slowly(*thread_and_number):
        time.sleep(0.2)
        send(*thread_and_number)

    monkeypatch.setattr(stopping, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(stopping.signal, "pthread_kill", slowly)
    try:
        with StopFlag():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.1)  # the poke is on its way
        time.sleep(0.3)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert late == []
