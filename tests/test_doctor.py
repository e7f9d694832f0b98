"""The examination names this machine and gives a backend, or every reason against it, for each feature."""

import pytest
import torch

from gossamer import doctor, kernels
from gossamer.doctor import Finding, choice, examine, features
from gossamer.kernels import BACKENDS, pick

CPU = torch.device("cpu")


class Refusing:
    name = "picky"

    def refuses(self, problem):
        return "runs on sm_90 only"


def test_the_machine_is_described():
    findings = {f.subject: f for f in examine() if f.topic == "machine"}
    assert findings["PyTorch"].answer == torch.__version__
    assert str(torch.get_num_threads()) in findings["CPU"].reason
    assert {"GPU", "Triton", "memory", "Python", "Gossamer"} <= set(findings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_comes_with_the_reason():
    (gpu,) = [f for f in examine() if f.subject == "GPU"]
    assert gpu.answer == "none" and ("built without CUDA" in gpu.reason or "sees no GPU" in gpu.reason)


def test_every_feature_gets_the_backend_that_attend_would_pick():
    findings = {f.subject: f for f in examine() if f.topic == "backends"}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problems = features(device)
    assert set(findings) == set(problems)
    for feature, problem in problems.items():
        assert findings[feature].answer == pick(problem).name


def test_the_reasons_of_those_before_are_kept(monkeypatch):
    problem = features(CPU)["sliding window"]
    monkeypatch.setattr(kernels, "BACKENDS", (Refusing(), *BACKENDS))
    found = choice("sliding window", problem)
    assert found.answer == BACKENDS[-1].name and found.reason.startswith("picky: runs on sm_90 only; dense: ")
    monkeypatch.setattr(kernels, "BACKENDS", (Refusing(),))
    assert choice("sliding window", problem) == Finding(
        "backends", "sliding window", "none", "picky: runs on sm_90 only"
    )


def test_each_feature_is_a_problem_of_its_own():
    problems = features(CPU)
    assert problems.pop("float32") == problems["sliding window"]  # what every other one varies
    assert len(set(problems.values())) == len(problems)


def test_absent_packages_are_said_to_be_absent(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda package: None)
    packages = [f for f in examine() if f.topic == "optional packages"]
    assert packages and all(f.answer == "not installed" and f.reason for f in packages)
