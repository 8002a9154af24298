"""Computations stop at the next forward pass, wait for each other, and leave nothing behind."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from trilemma.demo.stopping import Beat, Done, Jobs, StoppedError


def passes(clf, count, report=None):
    """Runs forward passes of the network, and returns their number."""
    for number in range(count):
        with torch.no_grad():
            clf.logits(torch.zeros(1, *clf.image_shape))
        if report is not None:
            report(number)
        time.sleep(0.001)
    return count


def test_reports_come_in_order_and_the_result_is_last(toy):
    clf, jobs = toy.mlp(), Jobs()
    assert list(jobs.run("a", clf, lambda report: passes(clf, 3, report))) == [0, 1, 2, Done(3)]
    assert not clf.network._forward_pre_hooks


def test_stop_ends_a_computation_at_its_next_forward_pass(toy):
    clf, jobs = toy.mlp(), Jobs()
    running = jobs.run("a", clf, lambda report: passes(clf, 10**6, report))
    assert [next(running) for _ in range(5)] == [0, 1, 2, 3, 4]
    # Of another session, and of this one.
    assert not jobs.stop("b")
    assert jobs.stop("a")
    with pytest.raises(StoppedError, match="stopped after"):
        for _, _ in zip(range(1000), running, strict=False):
            pass
    assert not jobs.stop("a")
    assert not clf.network._forward_pre_hooks


def test_closing_the_generator_stops_the_thread(toy):
    clf, jobs = toy.mlp(), Jobs()
    running = jobs.run("a", clf, lambda report: passes(clf, 10**6, report))
    next(running)
    before = threading.active_count()
    running.close()
    assert threading.active_count() == before - 1


def test_an_error_is_raised_where_the_reports_are_read_and_the_next_computation_runs(toy):
    clf, jobs = toy.mlp(), Jobs()

    def fail(report):
        raise ValueError("as it came")

    with pytest.raises(ValueError, match="as it came"):
        list(jobs.run("a", clf, fail))
    assert list(jobs.run("a", clf, lambda report: 7)) == [Done(7)]


def test_a_second_session_waits_says_so_and_can_be_stopped(toy, monkeypatch):
    monkeypatch.setattr("trilemma.demo.stopping.BEAT", 0.02)
    clf, jobs = toy.mlp(), Jobs()
    first = jobs.run("a", clf, lambda report: passes(clf, 10**6, report))
    assert next(first) == 0
    second = jobs.run("b", clf, lambda report: passes(clf, 2))
    assert next(second) == Beat(0, None)
    third = jobs.run("c", clf, lambda report: passes(clf, 2))
    assert next(third) == Beat(0, None)
    jobs.stop("c")
    with pytest.raises(StoppedError):
        list(third)
    first.close()
    assert list(second)[-1] == Done(2)
