"""Kernels of notebooks: they talk through files of their own, and leave none."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_notebook

from vlmad_lib.reporting import notebook_runner

SHOW = """
import multiprocessing
print(multiprocessing.get_start_method())
from ipykernel.connect import get_connection_info
print(get_connection_info())
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such sockets")
@pytest.mark.parametrize("long", [False, True])
def test_a_kernel_needs_no_network_and_leaves_no_file(tmp_path, monkeypatch, long):
    """A sandbox may lack even the loopback interface; only where a path is too long for a socket a port is taken."""
    folder = tmp_path / ("x" * 100 if long else "x")
    folder.mkdir()
    monkeypatch.setattr(notebook_runner.Kernel, "folder", str(folder))
    if not long:
        monkeypatch.setattr(notebook_runner, "SOCKET_FOLDER", 200)  # pytest's own folder may be longer than usual ones
        if len(os.fsencode(folder)) > 90:
            pytest.skip("the folder of this test is too long for a socket")
    names = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(SHOW)], metadata=names), tmp_path / "a.ipynb")
    notebook_runner.execute_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {}, tmp_path)
    said = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[-1].outputs[0].text
    assert f'"transport": "{"tcp" if long else "ipc"}"' in said and (str(Path(folder) / "kernel") in said) != long
    assert said.startswith(multiprocessing.get_all_start_methods()[0])  # the usual one, though the kernel is a fork
    assert not folder.exists() and not notebook_runner.Kernel.running


INTERRUPT = """
import os, signal, sys
from vlmad_lib.reporting import notebook_runner
signal.signal(signal.SIGINT, lambda *_: None)
notebook_runner.PRELOADED[:] = ["slow"]
notebook_runner.start_server(1)
os.killpg(0, signal.SIGINT)
process = notebook_runner.ForkedKernel(target=print, args=("alive",))
process.start()
sys.exit(process.wait())
"""


@pytest.mark.skipif(not notebook_runner.FORKS, reason="no fork server here")
def test_an_interrupt_does_not_end_the_fork_server_while_it_imports(tmp_path):
    """A terminal sends Ctrl-C to every process; what the server would say then says nothing to a user."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1)")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT], cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        start_new_session=True, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
