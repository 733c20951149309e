"""Making run directories while other processes make them too."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerch_ooc.base.errors import UsageError
from skerch_ooc.store.rundir import require_place


def test_plan_that_is_published_while_a_folder_is_listed_is_no_stranger(tmp_path, monkeypatch):
    plainly = Path.iterdir

    def meanwhile(self):
        (self / "plan.json").touch()
        return plainly(self)

    monkeypatch.setattr(Path, "iterdir", meanwhile)
    require_place(tmp_path)


def test_stranger_is_named_and_not_a_folder_of_ours(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"no plan \(thesis.tex is there\)"):
        require_place(tmp_path)
