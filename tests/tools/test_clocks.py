"""What feeds an assert with a clock is found, by whatever way it comes; what does not is left alone."""

# ruff: noqa: E501 (a snippet a line)

import ast

import pytest

from tools.clocks import clock_fed

TIMED = """
import time
def timed(task):
    start = time.perf_counter()
    task()
    return time.perf_counter() - start
"""
FED = {
    "directly": "import time\nassert time.time() < 5",
    "by another name": "from time import perf_counter as now\nstart = now()\nassert now() - start < 1",
    "by timeit": "import timeit\nassert timeit.timeit('pass') < 1",
    "in steps": "import time\na = time.monotonic()\nb = 2 * a\nc, d = b, 1\nassert c < 5",
    "added up": "import time\ntotal = 0\ntotal += time.process_time()\nassert total < 5",
    "through a function": TIMED + "assert timed(print) < 1",
    "through two functions": TIMED + "def twice():\n    return 2 * timed(print)\nslow = twice()\nassert slow < 1",
    "a function that is defined later": "def twice():\n    return 2 * timed(print)\n" + TIMED + "slow = twice()\nassert slow < 1",
    "a lambda": TIMED + "twice = lambda: 2 * timed(print)\nassert twice() < 1",
    "a function handed on": TIMED + "best = min(map(timed, [print, sorted]))\nassert best < 1",
    "a dict comprehension": TIMED + "times = {f: timed(f) for f in (print,)}\nassert times[print] < 1",
    "a list that is filled": TIMED + "times = []\nfor f in (print, sorted):\n    times.append(timed(f))\nassert min(times) < 1",
    "a dict that is filled": TIMED + "times = {}\ntimes['a'] = timed(print)\nassert times['a'] < 1",
    "lists in a dict": TIMED + "times = {}\ntimes.setdefault('a', []).append(timed(print))\nassert times['a'][0] < 1",
    "a loop over results": TIMED + "for name, t in {'a': timed(print)}.items():\n    assert t < 1",
    "late in a round, early in the next": TIMED + "best = 9\nfor f in (print, sorted):\n    assert best > 1\n    best = timed(f)",
    "a list that a function fills": TIMED + "times = []\ndef note():\n    times.append(timed(print))\nnote()\nassert times[0] < 1",
    "an argument that a function fills": TIMED + "def note(to):\n    to.append(timed(print))\ntimes = []\nnote(times)\nassert times[0] < 1",
    "a global name": TIMED + "def note():\n    global t\n    t = timed(print)\nnote()\nassert t < 1",
    "a function that asserts": TIMED + "def short(t):\n    assert t < 1\nshort(timed(print))",
    "assert_close": TIMED + "import torch\ntorch.testing.assert_close(timed(print), 1.0)",
    "a condition": TIMED + "ok = True\nif timed(print) > 1:\n    ok = False\nassert ok",
    "a loop with a deadline": "import time\nn = 0\nwhile time.time() < 9:\n    n += 1\nassert n > 3",
    "an error raised": TIMED + "if timed(print) > 1:\n    raise AssertionError",
    "an object": (
        "import time\nclass Timer:\n    def __enter__(self):\n        self.start = time.time()\n        return self\n"
        "    def __exit__(self, *_):\n        self.took = time.time() - self.start\n"
        "with Timer() as timer:\n    pass\nassert timer.took < 1"
    ),
    "a method": "import time\nclass Clock:\n    def read(self):\n        return time.time()\nassert Clock().read() < 1",
    "a walrus": TIMED + "print(t := timed(print))\nassert t < 1",
    "a generator": TIMED + "def all_of():\n    yield timed(print)\nassert sum(all_of()) < 1",
    "the seconds of a report": "reports = train(model)\nassert reports[-1].seconds < 60",
}  # fmt: skip
INNOCENT = {
    "nothing to do with it": TIMED + "t = timed(print)\nloss = 3\nassert loss < 4",
    "only in the message": TIMED + "t = timed(print)\nassert 1 < 2, f'after {t} s'",
    "the name is used anew": TIMED + "t = timed(print)\nt = 3\nassert t == 3",
    "the name of a parameter": TIMED + "t = timed(print)\ndef check(t):\n    assert t\ncheck(1)",
    "a local name": TIMED + "t = timed(print)\ndef check():\n    t = 1\n    assert t\ncheck()",
    "the name in a comprehension": TIMED + "t = timed(print)\nassert sum(t for t in (1, 2)) == 3",
    "a helper for times and losses": TIMED + "def mean(x):\n    return sum(x) / len(x)\na = mean([timed(print)])\nb = mean([1])\nassert b == 1",
    "two values side by side": TIMED + "loss, t = 3, timed(print)\nassert loss == 3",
    "time that is printed": "import time\ndef work():\n    start = time.time()\n    print(time.time() - start)\n    return 3\nassert work() == 3",
    "a field of another object": TIMED + "one.notes = timed(print)\nassert other.notes == 1",
    "a sleep": "import time\nx = 1\ntime.sleep(0)\nassert x == 1",
    "another module": "import math\nassert math.time() == 1",
}  # fmt: skip


@pytest.mark.parametrize("name", FED)
def test_a_clock_is_found(name: str) -> None:
    assert clock_fed([ast.parse(FED[name])]), FED[name]


@pytest.mark.parametrize("name", INNOCENT)
def test_the_innocent_are_left_alone(name: str) -> None:
    assert clock_fed([ast.parse(INNOCENT[name])]) == [], INNOCENT[name]


def test_a_value_comes_from_an_earlier_cell_and_the_place_is_named() -> None:
    cells = [ast.parse(TIMED + "t = timed(print)"), ast.parse("x = 1\nassert t < 1\nassert x")]
    assert clock_fed(cells) == [(1, 2)]
