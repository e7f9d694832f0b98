"""What is settled before processes meet: precisions, the place of the loss scale, who may share what."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from gossamer.config import GPT2Config, IndexerConfig
from gossamer.training.config import DataConfig, ParallelConfig, RunConfig, TrainConfig
from gossamer.training.distributed import _require_cpu_backend, gathered_in, loss_scaler

INDEXER = IndexerConfig(2, 8, index_topk=4, qk_rope_head_dim=4)
GPU, HOST = torch.device("cuda", 1), torch.device("cpu")


def configured(*, indexer: IndexerConfig | None = None, offload: bool = False, precision: str = "bf16") -> TrainConfig:
    return TrainConfig(
        model=replace(GPT2Config(vocab_size=257, n_layer=1, n_head=2, n_embed=16), indexer=indexer),
        data=DataConfig(sources=("text.txt",), tokenizer="bytes"),
        run=RunConfig(precision=precision),  # type: ignore[bad-argument-type]
        parallel=ParallelConfig(strategy="fsdp", offload=offload),
    )


@pytest.mark.parametrize(
    ("indexer", "device", "expected"),
    [(None, GPU, torch.bfloat16), (INDEXER, GPU, torch.float32), (None, HOST, torch.float32)],
    ids=["a GPU", "indexers", "a CPU"],
)
def test_layers_are_gathered_in_the_precision_of_the_run_where_nothing_is_chosen_by_them(
    indexer: IndexerConfig | None, device: torch.device, expected: torch.dtype
) -> None:
    assert gathered_in(configured(indexer=indexer), device) == expected


@pytest.mark.parametrize(("offload", "place"), [(False, "meta"), (True, "cpu")])
def test_the_loss_scale_lies_where_gradients_lie(offload: bool, place: str) -> None:
    scaler = loss_scaler(configured(offload=offload, precision="fp16"), torch.device("meta"))
    scaler.scale(torch.zeros((), device="meta"))
    assert scaler._scale is not None and scaler._scale.device.type == place


@pytest.mark.parametrize(
    ("offload", "device", "backends", "refused"),
    [
        (True, GPU, "cuda:nccl", True),
        (True, GPU, "cpu:gloo,cuda:nccl", False),
        (False, GPU, "cuda:nccl", False),
        (True, HOST, "cuda:nccl", False),
    ],
)
def test_offloading_asks_for_a_group_that_reaches_the_cpu(
    offload: bool, device: torch.device, backends: str, refused: bool
) -> None:
    config = configured(offload=offload)
    with mock.patch("torch.distributed.get_backend_config", lambda: backends):
        if refused:
            with pytest.raises(ValueError, match=r"parallel\.offload .* \(cuda:nccl\); make it with"):
                _require_cpu_backend(config, device)
        else:
            _require_cpu_backend(config, device)
