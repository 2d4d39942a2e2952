"""What the callbacks import, and what no one else does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gradscope.integrations.watching import Watching
from tests.models import mlp
from tests.test_imports import modules_after

FRAMEWORKS = {"transformers", "lightning", "pytorch_lightning", "accelerate", "ignite"}


def test_watching_a_plain_loop_imports_no_trainer():
    assert modules_after("import gradscope; gradscope.attach; import gradscope.integrations").isdisjoint(FRAMEWORKS)


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_the_callback_is_of_the_library_that_the_program_imports(name):
    program = f"import {name}; from gradscope.integrations.lightning import GradscopeCallback; "
    program += f"assert issubclass(GradscopeCallback, {name}.Callback)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_to_stop_one_of_several_processes_is_refused(tmp_path):
    watching = Watching({"logdir": tmp_path}, stop_on="critical")
    with pytest.warns(match="stop-on-one-process"):
        watching.begin(mlp(4, 2), tmp_path, first_step=0, losses_add_up=False, processes=2)
    watching.end()
