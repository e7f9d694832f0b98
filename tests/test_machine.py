"""The facts that go with every measurement."""

import os

import torch

from gossamer.machine import installed, this_machine


def test_the_machine_is_this_one():
    machine = this_machine()
    assert machine.cores == os.cpu_count() and machine.threads == torch.get_num_threads()
    assert machine.torch == torch.__version__ and machine.cpu and machine.memory_bytes > 2**28
    assert (machine.gpu is None) == (not torch.cuda.is_available())


def test_a_package_that_is_not_there_has_no_version():
    assert installed("torch") and installed("no-such-package-at-all") is None
