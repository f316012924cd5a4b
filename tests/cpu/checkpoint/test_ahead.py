"""Reading ahead: every parameter is what `read` returns, in any order, and is read once if the guess is right."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch

from svdq_trt.checkpoint.ahead import read_ahead, read_ahead_of

NAMES = [f"p{i}" for i in range(20)]
ORDER = [(name, 10) for name in NAMES]


class Reader:
    def __init__(self):
        self.count, self.lock = Counter(), threading.Lock()

    def __call__(self, name):
        with self.lock:
            self.count[name] += 1
        return torch.tensor([int(name[1:])])


def ask(reader, wanted, order=ORDER, budget=50):
    with read_ahead(reader, order, budget) as read:
        assert [int(read(name)) for name in wanted] == [int(name[1:]) for name in wanted]


def test_in_order_each_is_read_once():
    reader = Reader()
    ask(reader, NAMES)
    assert reader.count == Counter(NAMES)


def test_a_little_out_of_order_each_is_read_once():
    reader = Reader()
    ask(reader, [NAMES[i ^ 1] for i in range(20)], [("p1", 10), *ORDER])
    assert reader.count["p1"] == 2 and sum(reader.count.values()) == 21  # "p1" comes twice in the order


def test_any_order_and_unknown_names_and_second_passes_are_right():
    reader = Reader()
    ask(reader, [*reversed(NAMES), "p77", *NAMES, *NAMES[7:]])
    assert reader.count["p77"] == 1


def test_what_nobody_asks_for_does_not_stop_it():
    reader = Reader()
    ask(reader, [name for i, name in enumerate(NAMES) if i > 12] * 2)
    assert max(reader.count.values()) <= 3


def test_no_more_than_the_budget_waits():
    reader, asked = Reader(), 0
    with read_ahead(reader, ORDER, 50) as read:
        for name in NAMES[:4]:
            read(name)
            asked += 1
    assert sum(reader.count.values()) <= asked + 5


def test_an_error_is_raised_where_the_parameter_is_asked_for():
    def read_but_one(name):
        if name == "p3":
            raise ValueError("p3 is damaged")
        return torch.tensor([0])

    with read_ahead(read_but_one, ORDER) as read:
        read("p0"), read("p2")
        with pytest.raises(ValueError, match="p3 is damaged"):
            read("p3")


def test_only_a_gpu_is_read_ahead_of():
    reader = Reader()
    with read_ahead_of(torch.device("cpu"), reader, ORDER) as read:
        assert read is reader
    with read_ahead_of(torch.device("cuda"), reader, ORDER) as read:
        assert int(read("p0")) == 0
    assert len(reader.count) > 1
    with read_ahead_of(torch.device("cuda"), None, ORDER) as read:
        assert read is None
