"""Eigenvectors as the parameters of a model, by the layout that the operator states."""

from __future__ import annotations

import json

import pytest
import torch
from factories import dense, narrowable
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.files import signed_line
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.progress import Progress
from skerch_ooc.pipeline.verify import verify_run
from skerch_ooc.results import lowrank

LAYOUT = ParameterLayout.of([("fc.weight", (2, 99)), ("fc.bias", (2,))])


def operator():
    return narrowable(seconds=0)


@pytest.fixture(scope="module")
def eig(tmp_path_factory):
    return ooc.eigh(operator(), measurements=30, run_dir=tmp_path_factory.mktemp("model") / "run")


def written(folder, **more):
    return write_spec(folder, "narrowable", 30, operator={"args": {"seconds": 0}, **more})


class TestVectors:
    @pytest.mark.parametrize("number", [0, 3, -1])
    def test_are_the_columns_cut_into_tensors_of_the_parameters(self, eig, number):
        found = eig.by_parameter(number)
        assert {name: part.shape for name, part in found.items()} == {
            "fc.weight": (2, 99), "fc.bias": (2,),
        }  # fmt: skip
        joined = torch.cat([part.reshape(-1) for part in found.values()])
        torch.testing.assert_close(joined, eig.eigenvectors[:, number], rtol=0, atol=0)

    def test_no_other_column_is_read(self, eig, monkeypatch):
        read = []
        gather = lowrank.gather
        monkeypatch.setattr(
            lowrank, "gather", lambda tall, rows, columns: (
                read.append(list(columns.wanted)) or gather(tall, rows, columns)
            )
        )  # fmt: skip
        eig.by_parameter(4)
        assert read == [[4]]

    def test_number_that_there_is_not_is_refused(self, eig):
        with pytest.raises(IndexError):
            eig.by_parameter(30)
        with pytest.raises(TypeError):
            eig.by_parameter("first")

    def test_implicit_vectors_are_cut_as_well(self, tmp_path):
        eig = ooc.eigh(operator(), measurements=30, vectors="implicit", run_dir=tmp_path / "run")
        assert eig.by_parameter(1)["fc.bias"].shape == (2,)

    def test_result_is_opened_without_the_operator(self, inside, tmp_path):
        assert inside("run", written(tmp_path), "--run", "run").returncode == 0
        eig = ooc.recover(ooc.open_run(tmp_path / "run"))
        assert eig.by_parameter(0)["fc.weight"].shape == (2, 99)

    def test_run_of_an_operator_that_states_none_says_so(self, tmp_path):
        eig = ooc.eigh(dense(60, dtype="float32"), measurements=20, run_dir=tmp_path / "run")
        with pytest.raises(ooc.UsageError, match=r"has no \.layout; give it one and plan a new"):
            eig.by_parameter(0)
        assert not (tmp_path / "run/layout.json").exists()


class TestFile:
    def test_is_written_by_the_plan_that_has_the_operator(self, tmp_path):
        run = ooc.plan(written(tmp_path), tmp_path / "run")
        value = json.loads((run.directory / "layout.json").read_bytes())
        assert value["run"] == run.plan.run_id
        assert value["parameters"] == LAYOUT.as_json()
        assert run.layout() == LAYOUT

    def test_is_written_by_the_first_process_that_measures_where_the_plan_had_none(self, tmp_path):
        spec = written(tmp_path, shape=[200, 200])
        spec.write_text(spec.read_text() + "[sketch]\nblock = 20\n")
        run = ooc.plan(spec, tmp_path / "run")
        assert run.layout() is None
        ooc.measure(run)
        assert run.layout() == LAYOUT

    def test_is_written_once(self, tmp_path):
        run = ooc.plan(written(tmp_path), tmp_path / "run")
        path = run.directory / "layout.json"
        before = path.stat().st_mtime_ns
        run.publish_layout(ParameterLayout.of([("other", (200,))]))
        ooc.measure(run)
        assert path.stat().st_mtime_ns == before

    def test_layout_that_does_not_fit_is_refused_when_the_run_is_planned(self, tmp_path):
        wrong = operator()
        wrong.layout = ParameterLayout.of([("a", (7,))])
        with pytest.raises(ooc.OperatorError, match="have 7 entries, the operator has 200 columns"):
            ooc.plan({"measurements": 20}, tmp_path / "run", operator=wrong)
        assert not (tmp_path / "run").exists()

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"run": "0" * 64}, "belongs to another run"),
            ({"parameters": [{"name": "a"}]}, "is no layout of parameters"),
            ({"parameters": [{"name": "a", "shape": [5], "offset": 0}]}, "5 entries"),
        ],
    )
    def test_that_of_another_is_named_by_all_who_read_it(self, eig, tmp_path, change, message):
        run = ooc.plan(written(tmp_path), tmp_path / "run")
        ooc.run(written(tmp_path), run.directory)
        path = run.directory / "layout.json"
        value = {"run": run.plan.run_id, "parameters": LAYOUT.as_json()} | change
        path.write_bytes(signed_line(value))
        (told,) = verify_run(run, Progress())
        assert "layout.json" in told
        assert message in told
        result = ooc.recover(run)
        with pytest.raises(ooc.CorruptError, match=message):
            result.by_parameter(0)

    def test_altered_byte_is_found_by_verify(self, inside, tmp_path):
        ooc.plan(written(tmp_path), tmp_path / "run")
        assert inside("verify", "run").returncode == 0
        path = tmp_path / "run/layout.json"
        path.write_bytes(path.read_bytes().replace(b"fc.bias", b"fc.bike"))
        done = inside("verify", "run")
        assert done.returncode == 5
        assert "layout.json was altered" in done.stderr

    def test_stays_when_the_shards_are_cleaned(self, tmp_path):
        eig = ooc.eigh(operator(), measurements=30, run_dir=tmp_path / "run")
        done = ooc.clean(ooc.open_run(tmp_path / "run"), shards=True, older_than=0)
        assert done.strangers == []
        assert eig.by_parameter(0)["fc.bias"].shape == (2,)
