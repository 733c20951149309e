"""Examining: how many columns an operator applies at once, by time and within memory."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from factories import BEST, REMARKS, Narrowable, narrowable, narrowable_sum

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import PeakWatch, peak_memory, resident_memory
from skerch_ooc.operators import examine
from skerch_ooc.operators.adapters import Product, product_of
from skerch_ooc.operators.probe import Probe, Timing
from skerch_ooc.operators.terms import Sum

ALL = [1, 2, 4, 8, 16, 32, 64]


@pytest.fixture
def tried(monkeypatch):
    """Tries widths of an operator whose inner calls cost what the test says."""

    def tried_with(seconds_of, bytes_of=lambda width: 0, *, most=128, memory=1 << 60):
        class Told(PeakWatch):
            def __exit__(self, *error):
                super().__exit__(*error)
                self.peak = resident + bytes_of(self.width)

        def timed(product, x):
            Told.width = product.columns_at_once
            calls = -(-x.shape[1] // product.columns_at_once)
            return None, calls * seconds_of(product.columns_at_once), 0

        resident = resident_memory()
        monkeypatch.setattr(examine, "resident_memory", lambda: resident)
        monkeypatch.setattr(examine, "PeakWatch", Told)
        monkeypatch.setattr(examine, "timed", timed)
        product = product_of(narrowable(), "float32", "cpu")
        return examine.try_widths(product, 1, most=most, memory=memory)

    return tried_with


def widths_of(trial):
    return [one.columns for one in trial.timings]


class TestTrial:
    def test_quickest_width_for_a_column_is_the_best(self, tried):
        seconds = {1: 1.0, 2: 1.1, 4: 1.4, 8: 2.0, 16: 4.4, 32: 9, 64: 20}
        assert tried(lambda width: seconds[width] / 10).best.columns == 8

    def test_of_widths_that_are_about_as_quick_the_narrowest_is_the_best(self, tried):
        seconds = {1: 1.0, 2: 1.1, 4: 1.40, 8: 2.75, 16: 5.45, 32: 10.9, 64: 21.8}
        assert tried(lambda width: seconds[width] / 10).best.columns == 4

    def test_all_widths_are_tried_while_wider_ones_are_quicker(self, tried):
        trial = tried(lambda width: 0.3)
        assert widths_of(trial) == ALL
        # Each but the first is warmed up, and timed once in turn with the one before.
        assert (trial.best.columns, trial.products) == (64, 5 + 3 * sum(ALL[1:]))

    def test_trial_ends_with_the_second_width_that_is_clearly_slower(self, tried):
        assert widths_of(tried(lambda width: 0.001 * width ** (2 if width > 4 else 0.5))) == [
            1, 2, 4, 8, 16,
        ]  # fmt: skip

    def test_one_width_that_was_disturbed_does_not_end_the_trial(self, tried):
        seconds = {1: 0.3, 2: 0.9, 4: 0.3, 8: 1.2, 16: 0.3, 32: 0.3, 64: 0.3}
        assert widths_of(tried(seconds.__getitem__)) == ALL

    def test_of_long_calls_only_two_widths_are_tried(self, tried):
        assert widths_of(tried(lambda width: 20.0 * width)) == [1, 2]

    def test_long_calls_that_hardly_depend_on_the_width_go_on(self, tried):
        assert widths_of(tried(lambda width: 3.0 + 0.02 * width)) == ALL

    def test_short_calls_are_repeated_and_the_best_counts(self, tried):
        taken = iter([0.005, 0.005, 0.05, 0.01, *[0.03] * 100])
        trial = tried(lambda width: next(taken), most=1)
        # The first product warms up, and the memory of the second is watched.
        assert trial.timings == (Timing(1, 0.01, 0),)
        assert trial.products == 2 + 3

    @pytest.mark.parametrize(("gain", "chosen"), [(1.06, 1), (1.1, 2)])
    def test_wider_calls_must_be_clearly_quicker(self, tried, gain, chosen):
        trial = tried(lambda width: 0.05 * (1 if width == 1 else width / gain))
        assert trial.best.columns == chosen

    @pytest.mark.parametrize("slow", [1, 2, 4])
    def test_disturbances_choose_no_width(self, tried, slow):
        calls = itertools.count()

        def seconds_of(width):
            # A third of the calls of one width meet a busy processor.
            return 0.05 * width * (3 if width == slow and next(calls) % 3 == 0 else 1)

        assert tried(seconds_of).best.columns == 1

    def test_processor_that_is_ever_less_busy_chooses_no_width(self, tried):
        calls = itertools.count()
        assert tried(lambda width: 0.05 * width * (1 + 5 * 0.97 ** next(calls))).best.columns == 1

    def test_first_call_of_a_width_does_not_count(self, tried):
        seen = set()

        def seconds_of(width):
            first = width not in seen
            seen.add(width)
            return 0.02 + (0.3 if first else 0)

        assert tried(seconds_of).best.columns == 64

    def test_width_that_is_clearly_slower_is_timed_twice(self, tried):
        calls = Counter()

        def seconds_of(width):
            calls[width] += 1
            return 0.05 * width ** (2 if width > 1 else 1)

        tried(seconds_of, most=2)
        # Once to warm up, and then two blocks of two columns.
        assert calls[2] == 3

    @pytest.mark.parametrize("seconds", [0.2, 1.0, 20.0])
    def test_products_of_long_calls_are_few_where_no_width_is_quicker(self, tried, seconds):
        assert tried(lambda width: seconds * width).products <= 40

    @pytest.mark.parametrize("seconds", [0.0001, 0.001, 0.01, 0.05])
    def test_short_calls_take_some_seconds_in_all(self, tried, seconds):
        assert seconds * tried(lambda width: seconds * width).products < 5

    def test_no_width_is_tried_that_no_block_has(self, tried):
        assert widths_of(tried(lambda width: 0.3, most=20)) == [1, 2, 4, 8, 16]

    def test_no_width_is_tried_that_is_expected_to_need_too_much_memory(self, tried):
        free = 100 * 2**20
        held = resident_memory() + 48 * 2**20
        trial = tried(lambda width: 0.3, lambda width: width * 2**23, memory=held + free)
        assert widths_of(trial) == [1, 2, 4, 8]

    def test_first_width_counts_even_if_it_needs_too_much_memory(self, tried):
        trial = tried(lambda width: 0.3, lambda width: width << 30, memory=1 << 20)
        assert widths_of(trial) == [1]

    def test_width_that_the_device_has_no_room_for_ends_the_trial(self, tried):
        def seconds_of(width):
            if width > 4:
                raise OperatorError("out of memory")
            return 0.3

        assert widths_of(tried(seconds_of)) == [1, 2, 4]

    def test_operator_that_fails_on_one_column_is_refused(self, tried):
        def seconds_of(width):
            raise OperatorError("no product today")

        with pytest.raises(OperatorError, match="no product today"):
            tried(seconds_of)


class TestFindings:
    PLAIN = Probe(18, 0.0, 0.0, 0.0, 1.0, 9.0, 9.0, 999, 10**8)

    def completed(self, seconds):
        timings = tuple(Timing(width, taken, 1000 * width) for width, taken in seconds.items())
        return examine.WidthTrial(timings, 7, 10**8).completed(self.PLAIN)

    def test_seconds_of_a_block_are_those_of_its_inner_calls(self):
        found = self.completed({1: 0.5, 2: 0.6, 4: 0.8, 8: 1.2})
        assert found.columns_at_once == 8
        assert [found.seconds(width) for width in (1, 8, 32)] == pytest.approx([0.5, 1.2, 4.8])
        # A last inner call of one column takes what one column takes.
        assert found.seconds(33) == pytest.approx(4.8 + 0.5)

    def test_seconds_where_one_column_at_once_is_best(self):
        found = self.completed({1: 0.5, 2: 1.2})
        assert (found.columns_at_once, found.seconds(10)) == (1, 5.0)

    def test_memory_is_that_of_an_inner_call_however_wide_the_block(self):
        found = self.completed({1: 0.5, 2: 0.6, 4: 0.8})
        assert (found.inner_bytes, found.column_bytes) == (4000, 0)
        # They come on top of what the process held between the calls.
        assert found.baseline_bytes == 10**8

    def test_products_of_the_trial_count(self):
        assert self.completed({1: 0.5}).products == 18 + 7


class TestExamined:
    def test_operator_is_probed_as_the_run_will_apply_it(self, call_log):
        product, found, _ = examine.examine(
            product_of(narrowable(), "float32", "cpu"), 1, "eigh", most=128, memory=1 << 40
        )
        assert (product.columns_at_once, found.columns_at_once) == (BEST, BEST)
        assert [one.columns for one in found.widths] == [1, 2, 4, 8, 16, 32]
        # The last three calls are the probe's: one column twice, and 16 at once.
        assert [call["width"] for call in call_log()[-4:]] == [1, 1, BEST, BEST]
        assert sum(call["width"] for call in call_log()) == found.products

    def test_other_operators_are_probed_as_ever(self):
        given = product_of(torch.eye(60), "float32", "cpu")
        product, found, _ = examine.examine(given, 1, "eigh", most=128, memory=1 << 40)
        assert product is given
        assert (found.columns_at_once, found.inner_bytes, found.widths) == (None, 0, ())


class TestWatch:
    def test_peak_within_is_found_although_the_process_had_a_higher_one(self):
        np.ones(200 << 20, np.uint8)
        before = resident_memory()
        with PeakWatch() as watch:
            held = np.ones(60 << 20, np.uint8)
            for _ in range(20):
                held += 1
        assert 50 << 20 < watch.peak - before < 150 << 20

    def test_new_peak_of_the_process_is_known_exactly(self):
        with PeakWatch() as watch:
            np.ones(peak_memory() - resident_memory() + (64 << 20), np.uint8)
        assert watch.peak == peak_memory()


class TestProduct:
    def test_layout_remarks_and_width_are_those_of_the_operator(self):
        operator = narrowable()
        product = product_of(operator, "float32", "cpu")
        assert product.layout == operator.layout
        assert (product.remarks, product.columns_at_once) == (REMARKS, 3)

    def test_operators_that_state_nothing_have_none(self):
        # A tensor has a .layout of its own, torch.strided.
        product = Product(torch.eye(4), "float32", "cpu")
        assert (product.layout, product.remarks, product.columns_at_once) == (None, (), None)
        with pytest.raises(OperatorError, match="cannot be told to apply 4 columns at once"):
            product.narrowed(4)

    @pytest.mark.parametrize(
        ("remarks", "told"), [("one", ("one",)), (["a", 2], ("a", "2")), (len, ()), (None, ())]
    )
    def test_remarks_of_any_kind_are_texts(self, remarks, told):
        operator = narrowable()
        operator.remarks = remarks
        assert product_of(operator, "float32", "cpu").remarks == told

    def test_narrowed_product_is_a_new_one_of_the_same_operator(self):
        product = product_of(narrowable(), "float32", "cpu")
        narrow = product.narrowed(5)
        assert (product.columns_at_once, narrow.columns_at_once) == (3, 5)
        assert narrow._operator.matrix is product._operator.matrix

    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            (ParameterLayout.of([("a", (3,))]), "have 3 entries, the operator has 200 columns"),
            (type("Odd", (), {"as_json": lambda _: [3]})(), "must list the name, shape and offset"),
        ],
    )
    def test_layout_that_does_not_fit_is_refused(self, layout, message):
        operator = narrowable()
        operator.layout = layout
        with pytest.raises(OperatorError, match=message):
            _ = product_of(operator, "float32", "cpu").layout


class TestSum:
    def test_states_what_its_maker_set(self):
        product = product_of(narrowable_sum(), "float32", "cpu")
        assert (product.remarks, product.columns_at_once) == (REMARKS, 3)
        assert product.layout == narrowable().layout

    def test_plain_sum_cannot_be_told(self):
        assert product_of(Sum([torch.eye(4)]), "float32", "cpu").columns_at_once is None

    @pytest.mark.parametrize("chosen", [None, Range(1, 3)])
    def test_each_term_is_told_where_it_is_used(self, call_log, chosen):
        product = product_of(narrowable_sum(), "float32", "cpu").narrowed(5)
        product = product if chosen is None else product.part(chosen)
        product(np.ones((200, 12), np.float32))
        assert [call["width"] for call in call_log()] == (3 if chosen is None else 2) * [5, 5, 2]

    def test_term_is_built_once_for_all_widths(self):
        built = []

        def term():
            built.append(narrowable(seconds=0))
            return built[-1]

        whole = Sum([term], shape=(200, 200), dtype="float32")
        whole.columns_at_once = 1
        product = product_of(whole, "float32", "cpu")
        x = np.ones((200, 4), np.float32)
        results = [product.narrowed(width)(x) for width in (1, 2, 4)]
        assert len(built) == 1
        np.testing.assert_allclose(results[0], results[2], atol=1e-6)

    def test_term_is_built_once_for_all_blocks_of_its_part(self):
        built = []
        whole = Sum([lambda: built.append(1) or torch.eye(8)] * 2, shape=(8, 8), dtype="float32")
        product = product_of(whole, "float32", "cpu")
        for _ in range(3):
            product.part(Range(1, 2))(np.ones((8, 2), np.float32))
        assert len(built) == 1

    def test_terms_that_cannot_be_told_are_left_as_they_are(self, call_log):
        mixed = Sum([torch.eye(200), Narrowable(torch.eye(200), seconds=0)])
        mixed.columns_at_once = 1
        product_of(mixed, "float32", "cpu").narrowed(4)(np.ones((200, 6), np.float32))
        assert [call["width"] for call in call_log()] == [4, 2]
