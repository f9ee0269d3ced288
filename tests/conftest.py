"""Fixtures shared by all tests: tiny tasks that train in milliseconds."""

import os
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from tests.tuning.folders import write
from torch import nn

settings.register_profile("luthier", deadline=None, max_examples=30)
settings.load_profile("luthier")


class SmallNet(nn.Module):
    """Linear, batch norm, ReLU, dropout, linear: everything that has state or draws random numbers."""

    def __init__(self, features=6, classes=3, width=8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, classes)
        )

    def forward(self, x):
        return self.layers(x)


def blobs(n=90, features=6, classes=3, seed=0):
    """Points around one centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = 2 * torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    return centres[y] + torch.randn(n, features, generator=generator), y


@pytest.fixture
def make_task():
    """A function that makes the small classification task; keywords go to Task."""
    from luthier.task import Task

    def make(**keywords):
        settings = {"model": SmallNet, "train": blobs(), "val": blobs(45, seed=1), "test": blobs(45, seed=2)}
        return Task(**{**settings, "name": "blobs", **keywords})

    return make


@pytest.fixture
def task(make_task):
    """The small classification task."""
    return make_task()


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory):
    """A Ray cluster of this machine with two CPUs; one at a time, also among the processes that run tests."""
    import ray
    from filelock import FileLock

    with FileLock(Path(tempfile.gettempdir()) / f"luthier-tests-ray-{os.getuid()}.lock"):
        settings = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        ray.init("local", num_cpus=2, object_store_memory=200 << 20, **settings)
        yield
        ray.shutdown()
        for number, handler in handlers.items():  # Ray and its Tuner put their own there, and leave them
            signal.signal(number, handler)


@pytest.fixture
def made(tmp_path):
    """A trial's folder in which something was saved."""
    folder = tmp_path / "made" / "0007"
    write(folder, "one")
    return folder
