"""Laws of cost: exponents of planted power laws, bars that a steeper one misses, turns that end within a bound."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import scaling, scaling_host
from benchmarks.scaling_fit import Bar, Measured, fit, judge, take_turns
from jaxlm.errors import ConfigError

SIZES = [2**power for power in range(10, 17)]


def law(seconds, bar, sizes=SIZES, memory=None):
    measured = Measured(sizes, [[scale * each for each in seconds] for scale in (0.9, 1.0, 3.0)], memory or sizes)
    return judge("planted", "tokens", measured, bar)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_a_planted_power_is_found_exactly(exponent):
    found = fit(SIZES, [3e-6 * size**exponent for size in SIZES])
    assert found.exponent == pytest.approx(exponent, abs=1e-12)
    assert found.error == pytest.approx(0.0, abs=1e-12)


def test_the_standard_error_is_that_of_the_slope():
    """Over 2,000 draws of noise of known spread: the slope's own spread, and what the error says it is."""
    rng, sizes, spread = np.random.default_rng(0), SIZES, 0.1
    found = [fit(sizes, [size * math.exp(spread * each) for size, each in zip(sizes, row, strict=True)])
             for row in rng.standard_normal((2000, len(sizes)))]  # fmt: skip
    slopes, errors = np.array([each.exponent for each in found]), np.array([each.error for each in found])
    true = spread / math.sqrt(sum((math.log(size) - np.mean(np.log(sizes))) ** 2 for size in sizes))
    assert slopes.mean() == pytest.approx(1.0, abs=4 * true / math.sqrt(2000))
    assert slopes.std() == pytest.approx(true, rel=0.07)
    assert math.sqrt((errors**2).mean()) == pytest.approx(true, rel=0.07)


def test_two_points_have_no_error_and_fewer_no_exponent():
    assert math.isnan(fit([1, 2], [1.0, 4.0]).error)
    for x, y in (([1], [1.0]), ([2, 2], [1.0, 2.0]), ([1, 2], [0.0, 1.0])):
        with pytest.raises(ValueError, match="two different points"):
            fit(x, y)


def test_a_quadratic_misses_the_bar_of_a_line_and_keeps_its_own():
    quadratic = [1e-9 * size**2 for size in SIZES]
    linear, square = law(quadratic, Bar("", seconds=1.1)), law(quadratic, Bar("", seconds=2.1))
    assert not linear["passed"] and "exponent 2.00, at most 1.1" in linear["missed"][0]
    assert square["passed"] and square["missed"] == []
    assert linear["seconds"] == pytest.approx(quadratic)  # the median of the rounds
    json.dumps(linear, allow_nan=False)


def test_growth_that_turns_up_at_the_end_is_missed():
    """Flat up to 64, then twelvefold: a line through all points would pass."""
    sizes = [2**power for power in range(8)]
    late = [1.0] * 7 + [12.0]
    found = law(late, Bar("", seconds=0.5), sizes=sizes)
    assert found["exponent_seconds"] < 0.5 and not found["passed"] and "at the end, at most 1.3" in found["missed"][0]
    assert law(late, Bar("", bytes=0.5), sizes=sizes, memory=[int(each) for each in late])["faults"]["bytes"]
    assert law([1.0] * 8, Bar("", seconds=0.5), sizes=sizes)["passed"]
    assert [Bar("", seconds=most).last("seconds") for most in (0.15, 1.1)] == pytest.approx([0.6, 2.1])


def test_two_points_and_an_end_that_was_not_reached_show_nothing():
    assert "too few points (2" in law([1.0, 2.0], Bar("", seconds=1.1), sizes=[1, 2])["missed"][0]
    measured = Measured([1, 2, 4], [[1.0, 2.0, 4.0]], [1, 2, 4], wanted=8)
    found = judge("planted", "tokens", measured, Bar("", seconds=1.1))
    assert not found["passed"] and found["missed"] == ["planted: not shown beyond 4, 8 was asked for"]
    assert scaling.verdict(found) == "not shown" and scaling.verdict(found | {"faults": {"seconds": ["x"]}}) == "MISSED"


def test_bytes_that_cannot_be_told_are_no_points(monkeypatch):
    found = law([1.0, 2.0, 4.0, 8.0], Bar("", bytes=1.1), sizes=[1, 2, 4, 8], memory=[None, 20, 40, 80])
    assert found["exponent_bytes"] == pytest.approx(1.0) and found["passed"]
    assert "too few" in law([1.0] * 4, Bar("", bytes=1.1), sizes=[1, 2, 4, 8], memory=[None, None, 40, 80])["missed"][0]
    peaks = iter([10**8, 10**8 + 4096, 10**8 + 5 * 2**20])
    monkeypatch.setattr(scaling_host, "peak_of", lambda command: next(peaks))
    monkeypatch.setattr(scaling_host, "make_runs", lambda folder, count: None)
    monkeypatch.setattr(scaling_host, "listed", lambda folder, count: (1.0, 1.0))
    assert scaling_host.index(True).bytes == [None, None, 5 * 2**20]


def test_laws_that_are_not_measured_come_from_a_record_or_fail(tmp_path):
    file = tmp_path / "scaling.json"
    laws, lacking = scaling.read_stored(file, ["index"])
    assert laws == [] and "index: not measured, and not in scaling.json" in lacking[0]
    measured = Measured([100, 1000, 10_000], [[1.0, 10.0, 100.0]], [None, 10, 100])
    stored = judge("index", "runs", measured, Bar(""))
    record = {"quick": False, "when": "2026-01-01T00:00", "commit": "abc", "laws": [stored]}
    file.write_text(json.dumps(record))
    (law,), lacking = scaling.read_stored(file, ["index", "devices"])
    assert lacking[0].startswith("devices: not measured") and law["measured"]["commit"] == "abc"
    # Today's bars judge it, not those of then.
    assert stored["passed"] and not law["passed"] and "bytes cannot be fitted" in law["missed"][0]
    assert scaling.verdict(law) == "MISSED (2026-01-01)"
    file.write_text(json.dumps(record | {"quick": True}))
    assert scaling.read_stored(file, ["index"])[0] == []


def test_memory_has_a_bar_of_its_own_and_a_most():
    squares = [size**2 for size in SIZES]
    assert not law(SIZES, Bar("", bytes=1.1), memory=squares)["passed"]
    measured = Measured(SIZES, [[1.0] * len(SIZES)], SIZES, most_bytes=SIZES[-1] - 1)
    assert "bytes at the last point" in judge("planted", "entries", measured, Bar("", bytes=1.1))["missed"][0]


def test_the_line_is_fitted_from_where_the_bar_says():
    late = [max(size, 8192) * 1e-6 for size in SIZES]
    assert law(late, Bar("", start=8192))["exponent_seconds"] == pytest.approx(1.0)
    assert law(late, Bar(""))["exponent_seconds"] < 0.7


def test_a_law_that_reached_too_few_points_does_not_pass():
    found = law([1.0, 2.0], Bar("", seconds=1.1, start=4096), sizes=[1024, 2048])
    assert not found["passed"] and found["exponent_seconds"] is None and "too few points" in found["missed"][0]


def test_turns_go_from_the_smallest_on_and_stop_before_the_bound(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr("benchmarks.scaling_fit.time.perf_counter", lambda: clock[0])

    def run(x):
        called.append(x)
        clock[0] += float(x) ** 2

    points = {x: lambda x=x: run(x) for x in (4, 1, 2, 8, 16)}
    reached, rounds = take_turns(points, rounds=3, bound=300.0, steepest=2.0)
    # 1 once more than it counts, 4, 16 and 64 are long: with 86 gone a point of 256 would pass 300, two rounds of 85 do not.
    assert reached == [1, 2, 4, 8] and called == [1, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8]
    assert all(each == [1.0, 4.0, 16.0, 64.0] for each in rounds) and len(rounds) == 3
    assert clock[0] == 256.0


def test_laws_are_chosen_by_name():
    assert scaling.chosen(("experts", "index, unchanged")) == ["experts", "index, unchanged"]
    assert scaling.chosen(()) == list(scaling.LAWS)
    with pytest.raises(ConfigError, match="vocabulary"):
        scaling.chosen(("vocabulry",))


def test_runs_in_the_index_are_counted_and_measured(monkeypatch):
    """The shortest law from end to end: made folders, the command's table, time and peak."""
    monkeypatch.setattr(scaling_host, "peak_of", lambda command: 10**8)
    monkeypatch.setattr(scaling_host, "QUICK_COUNTS", (2, 5, 9))
    measured = scaling_host.index(True)
    assert measured.x == [2, 5, 9] and all(seconds > 0 for seconds in measured.seconds)


def test_the_peak_of_a_process_is_its_own_and_its_failure_an_error():
    size = 200 * 2**20
    held = b"1" * (4 * size)  # what this process holds must not be taken for the other's
    assert size < scaling_host.peak_of([sys.executable, "-c", f"x = b'1' * {size}"]) < 3 * size
    del held
    with pytest.raises(RuntimeError, match="status 3"):
        scaling_host.peak_of([sys.executable, "-c", "raise SystemExit(3)"])
