"""States in files: gone however a run ends, refused where there is no room."""

import gc
import shutil
import subprocess
import sys
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import CheckpointedChain, ReplayError, StoreError
from tests.chainograd.storage.states import M
from tests.problems import Net


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def wait_until(true, at_once=False):
    """Wait for what a thread does by itself, if it may; the test fails if it never does."""
    deadline = time.monotonic() + (0 if at_once else 20)
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


@pytest.mark.parametrize("end", ["backward", "forgotten", "failed forward", "failed backward"])
def test_files_are_gone_however_a_run_ends(end, tmp_path):
    net = Net(4, torch.float32)
    failing = {"now": end == "failed forward"}
    seen = []

    def step(x, i):
        seen.append(len(files(tmp_path)))
        if failing["now"] and i == 3:
            raise ValueError("stop")
        return net(x, i)

    chain = CheckpointedChain(step, M, store=tmp_path)
    gc.disable()
    try:
        if end == "failed forward":
            with pytest.raises(ValueError, match="stop"):
                chain(torch.ones(2, 4))
        else:
            loss = chain(torch.ones(2, 4)).sum()
            assert len(files(tmp_path)) == M
        if end == "backward":
            loss.backward()
        elif end == "failed backward":
            failing["now"] = True
            with pytest.raises(ValueError, match="stop") as error:
                loss.backward()
            assert error.value.__traceback__ is not None  # which holds frames; files it does not
        elif end == "forgotten":
            del loss
        wait_until(lambda: not list(tmp_path.iterdir()), at_once=end != "forgotten")
        assert max(seen) > 0
    finally:
        gc.enable()


def test_files_are_gone_when_the_interpreter_ends_with_a_gradient_owed(tmp_path):
    code = f"""
import torch
from chainograd import CheckpointedChain
w = torch.ones(3, requires_grad=True)
loss = CheckpointedChain(lambda x, i: w * x, 5, store={str(tmp_path)!r})(torch.ones(3)).sum()
"""
    subprocess.run([sys.executable, "-c", code], check=True)

    assert not list(tmp_path.iterdir())


def test_a_folder_without_room_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    runs = []
    w = torch.ones(100, requires_grad=True)

    with pytest.raises(StoreError, match=r"1,000 bytes free, but 7 states need 2,800.*another"):
        CheckpointedChain(lambda x, i: runs.append(i) or w * x, M, store=tmp_path)(torch.ones(100))
    assert not runs
    wait_until(lambda: not list(tmp_path.iterdir()))


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    w = torch.ones(3, requires_grad=True)

    with pytest.raises(StoreError, match=r"cannot be written to.*Name another folder"):
        CheckpointedChain(lambda x, i: w * x, M, store=tmp_path / "file" / "nodes")(torch.ones(3))


def test_a_disk_that_fills_up_on_the_way_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    w = torch.ones(3, requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, M, store=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("chainograd.storage.disk._write", full)
        with pytest.raises(StoreError, match=r"No space left on device.*store='host'"):
            chain(torch.ones(3))
    assert not list(tmp_path.iterdir())

    chain(torch.ones(3)).sum().backward()  # and the chain works again
    assert torch.equal(w.grad, torch.full((3,), 7.0))


@pytest.mark.parametrize("harm", ["removed", "cut short"])
def test_a_file_that_is_lost_is_an_error_with_its_name(harm, tmp_path):
    w = torch.ones(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: w * x, M, store=tmp_path)(torch.ones(3)).sum()
    (victim,) = (path for path in files(tmp_path) if path.name.endswith("state-2"))
    if harm == "removed":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:5])

    with pytest.raises(StoreError, match="state-2"):
        loss.backward()


def test_a_changed_file_is_noticed_by_the_replay(tmp_path):
    w = torch.ones(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: w * x, M, store=tmp_path)(torch.ones(3)).sum()
    (victim,) = (path for path in files(tmp_path) if path.name.endswith("state-2"))
    victim.write_bytes(bytes(12))

    with pytest.raises(ReplayError, match="Step 2"):
        loss.backward()


def test_fake_tensors_are_not_written_to_files(tmp_path):
    with FakeTensorMode():
        w, x = torch.ones(3, requires_grad=True), torch.ones(3)
        with pytest.raises(StoreError, match="fake"):
            CheckpointedChain(lambda x, i: w * x, M, store=tmp_path)(x)
