"""A user's script, for a type checker: it has to see the types of the installed package."""

from typing import assert_type

import torch

import skerch_ooc as ooc

A = torch.eye(100)
eig = ooc.eigh(A, measurements=20, run_dir="runs/a")
usv = ooc.svd(A, measurements=20, run_dir="runs/b")

assert_type(eig, ooc.Eigh)
assert_type(eig.eigenvalues, torch.Tensor)
assert_type(eig.eigenvectors[:, :10], torch.Tensor)
assert_type(usv.U[:], torch.Tensor)
assert_type(ooc.open_run("runs/a"), ooc.Run)
assert_type(ooc.assess("runs/a"), ooc.Assessment)
assert_type(ooc.assess("runs/a").relative_error, float | None)
ooc.assess(5)  # type: ignore[arg-type]  # and says where one is wrong
