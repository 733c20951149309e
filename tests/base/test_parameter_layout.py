"""Layouts of parameters: every entry of the vector is in one parameter, and files are checked."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerch_ooc.base.errors import CorruptError, OperatorError
from skerch_ooc.base.parameter_layout import Parameter, ParameterLayout

relaxed = settings(deadline=None)

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
layouts = st.dictionaries(st.text(min_size=1, max_size=9), shapes, min_size=1, max_size=6).map(
    lambda found: ParameterLayout.of(found.items())
)

SMALL = ParameterLayout.of([("fc.weight", (3, 2)), ("fc.bias", [3]), ("scale", ())])


class TestLayout:
    def test_parameters_follow_each_other(self):
        assert SMALL.offsets == (0, 6, 9)
        assert (SMALL.size, len(SMALL)) == (10, 3)
        assert list(SMALL) == [
            Parameter("fc.weight", (3, 2), 0), Parameter("fc.bias", (3,), 6),
            Parameter("scale", (), 9),
        ]  # fmt: skip

    def test_takes_the_parameters_of_a_torch_model(self):
        model = torch.nn.Linear(4, 2)
        layout = ParameterLayout.of((name, p.shape) for name, p in model.named_parameters())
        assert layout.as_json() == [
            {"name": "weight", "shape": [2, 4], "offset": 0},
            {"name": "bias", "shape": [2], "offset": 8},
        ]

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            SMALL.names = ()

    @pytest.mark.parametrize(
        ("pairs", "message"),
        [
            ([], "there are no parameters"),
            ([("", (2,))], "'' is no name"),
            ([(3, (2,))], "3 is no name"),
            ([("a", (2,)), ("a", (3,))], "two parameters have the name 'a'"),
            ([("a", (2, -1))], r"\(2, -1\) is no shape of the parameter 'a'"),
            ([("a", (2.0,))], "is no shape"),
            ([("a", (True,))], "is no shape"),
            ([("a", 4)], "4 is no shape"),
            ([("a", (2**40, 2**40))], "is no shape"),
        ],
    )
    def test_what_is_no_layout_is_refused(self, pairs, message):
        with pytest.raises(OperatorError, match=message):
            ParameterLayout.of(pairs)


class TestSplit:
    @relaxed
    @given(layouts, st.integers(0, 3), st.sampled_from(["numpy", "torch"]))
    def test_parts_hold_each_entry_once_in_order(self, layout, columns, library):
        shape = (layout.size, columns) if columns else (layout.size,)
        vector = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        given = torch.from_numpy(vector) if library == "torch" else vector
        parts = layout.split(given)
        assert list(parts) == list(layout.names)
        for one in layout:
            assert tuple(parts[one.name].shape) == one.shape + shape[1:]
        joined = [np.asarray(part).reshape(-1, *shape[1:]) for part in parts.values()]
        # An empty parameter has no -1 that numpy could find.
        joined = [part for part in joined if part.size]
        np.testing.assert_array_equal(np.concatenate(joined) if joined else vector[:0], vector)

    @pytest.mark.parametrize("library", ["numpy", "torch"])
    def test_parts_are_views_even_of_a_strided_column(self, library):
        matrix = np.zeros((10, 4))
        column = (torch.from_numpy(matrix) if library == "torch" else matrix)[:, 2]
        SMALL.split(column)["fc.weight"][2, 1] = 7
        assert matrix[5, 2] == 7

    @pytest.mark.parametrize("shape", [(9,), (11, 2), (), (10, 2, 2)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(OperatorError, match=r"must have the shape \(10,\) or \(10, columns\)"):
            SMALL.split(np.zeros(shape))


class TestFile:
    @relaxed
    @given(layouts)
    def test_reads_what_it_wrote(self, layout):
        assert ParameterLayout.from_json(json.loads(json.dumps(layout.as_json())), "x") == layout

    @pytest.mark.parametrize(
        "value",
        [
            None, {}, [], 3, "text", [3], [{}], [["a", [2], 0]],
            [{"name": "a", "shape": [2], "offset": 1}],
            [{"name": "a", "shape": [2], "offset": 0}, {"name": "b", "shape": [2], "offset": 3}],
            [{"name": "a", "shape": [2], "offset": 0, "more": 1}],
            [{"name": "a", "shape": "2", "offset": 0}],
            [{"name": "a", "shape": [1e999], "offset": 0}],
            [{"name": ["a"], "shape": [2], "offset": 0}],
        ],
    )  # fmt: skip
    def test_any_other_file_is_named(self, value):
        with pytest.raises(CorruptError, match=r"run/layout\.json is no layout of parameters"):
            ParameterLayout.from_json(value, "run/layout.json")
