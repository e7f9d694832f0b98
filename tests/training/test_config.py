"""One tree is the Python API, the TOML file and the flags, and every wrong value in it is named."""

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import tyro

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.training.config import (
    DataConfig,
    GuardConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)


def everything_changed() -> TrainConfig:
    return TrainConfig(
        model=GPT2Config(
            vocab_size=300,
            context_size=64,
            n_layer=2,
            n_head=3,
            n_embed=48,
            dropout=0.25,
            use_sparse_attention=True,
            sparse_config=SparseAttentionConfig(local_heads=2, global_heads=1, max_global_tokens=9),
        ),
        data=DataConfig(sources=("a.txt", "b"), folder="tokens", tokenizer="bytes", validation_share=0.5),
        optimizer=OptimizerConfig(learning_rate=0.1 + 0.2, gradient_clip=math.inf),
        schedule=ScheduleConfig(warmup_steps=0, final_share=0.0),
        run=RunConfig(
            folder="out",
            steps=7,
            precision="bf16",
            compile=True,
            seed=2**62,
            track=("wandb", "tensorboard"),
            profile_steps=(3, 7),
            peak_flops=1e12,
        ),
        guard=GuardConfig(spike_factor=math.inf, spike_window=9, most_skips=0),
    )


@pytest.mark.parametrize("config", [TrainConfig(), everything_changed()], ids=["default", "changed"])
def test_toml_and_dict_bring_every_field_back(config: TrainConfig, tmp_path) -> None:
    config.to_toml(tmp_path / "config.toml")
    assert TrainConfig.from_toml(tmp_path / "config.toml") == config
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_flags_are_the_same_tree() -> None:
    flags = "--run.steps 7 --model.n-layer 2 --data.sources a.txt b --run.precision bf16 --optimizer.beta2 0.9"
    config = tyro.cli(TrainConfig, args=flags.split(), default=TrainConfig())
    default = TrainConfig()
    assert config == replace(
        default,
        run=replace(default.run, steps=7, precision="bf16"),
        model=replace(default.model, n_layer=2),
        data=replace(default.data, sources=("a.txt", "b")),
        optimizer=replace(default.optimizer, beta2=0.9),
    )


def test_every_field_has_help_text(capsys) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(TrainConfig, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for sentence in (
        "Optimizer steps in all.",
        "Highest learning rate",
        "Steps in which the",
        "Text files, folders",
    ):
        assert sentence in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": {"step": 3}}, r"unknown key run\.step; did you mean run\.steps\?"),
        ({"runs": {}}, r"unknown key runs; did you mean run\?"),
        (
            {"model": {"sparse_config": {"window": 3}}},
            r"model\.sparse_config\.window; did you mean .*window_size\?",
        ),
        ({"run": {"zzz": 3}}, r"unknown key run\.zzz; known are folder, steps"),
        ({"run": 3}, "run is 3; give a table"),
        ({"run": {"steps": "many"}}, r"run\.steps is 'many'; give an integer"),
        ({"run": {"steps": 2.5}}, r"run\.steps is 2\.5; give an integer"),
        ({"run": {"track": "wandb"}}, r"run\.track is 'wandb'; give a list of some of tensorboard, wandb"),
        ({"run": {"track": ["mlflow"]}}, r"run\.track\[0\] is 'mlflow'; give one of tensorboard, wandb"),
        ({"run": {"profile_steps": [3, 0]}}, r"each of profile_steps is 0; give an integer of at least 1"),
        ({"run": {"peak_flops": -1.0}}, r"peak_flops is -1\.0; give a positive number"),
        ({"guard": {"spikes": 3}}, r"unknown key guard\.spikes; did you mean guard\.spike_"),
        ({"run": {"steps": True}}, r"run\.steps is True; give an integer"),
        ({"run": {"compile": 1}}, r"run\.compile is 1; give true or false"),
        ({"run": {"precision": "fp8"}}, r"run\.precision is 'fp8'; give one of fp32, bf16, fp16"),
        ({"data": {"sources": "a.txt"}}, r"data\.sources is 'a\.txt'; give a list of texts"),
        ({"optimizer": {"learning_rate": "1"}}, r"learning_rate is '1'; give a number"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(settings)


@pytest.mark.parametrize(
    ("branch", "field", "value"),
    [
        (RunConfig, "steps", 0),
        (RunConfig, "steps", -1),
        (RunConfig, "steps", math.nan),
        (RunConfig, "batch_size", 2.5),
        (RunConfig, "evaluate_every", 0),
        (RunConfig, "keep_checkpoints", 0),
        (RunConfig, "seed", -1),
        (RunConfig, "seed", 2**63),
        (RunConfig, "precision", "fp8"),
        (RunConfig, "folder", ""),
        (RunConfig, "gradient_accumulation", 17),
        (OptimizerConfig, "learning_rate", math.nan),
        (OptimizerConfig, "learning_rate", math.inf),
        (OptimizerConfig, "learning_rate", 0.0),
        (OptimizerConfig, "learning_rate", "fast"),
        (OptimizerConfig, "weight_decay", -0.1),
        (OptimizerConfig, "beta1", 1.0),
        (OptimizerConfig, "beta2", -0.1),
        (OptimizerConfig, "epsilon", 0.0),
        (OptimizerConfig, "gradient_clip", 0.0),
        (OptimizerConfig, "gradient_clip", math.nan),
        (ScheduleConfig, "warmup_steps", -1),
        (ScheduleConfig, "final_share", 1.5),
        (DataConfig, "validation_share", 0.0),
        (DataConfig, "validation_share", 1.0),
        (DataConfig, "validation_share", math.nan),
        (DataConfig, "encoding", "utf-9"),
        (DataConfig, "sources", "a.txt"),
        (RunConfig, "activation_checkpointing", "some"),
        (ParallelConfig, "strategy", "pipeline"),
        (ParallelConfig, "exchange", "values"),
        (ParallelConfig, "context", 0),
        (ParallelConfig, "timeout_seconds", 0.0),
        (ParallelConfig, "timeout_seconds", math.inf),
    ],
)
def test_a_value_out_of_range_is_named_with_the_fix(branch: type, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{branch.__name__}: {field} is .*give"):
        branch(**{field: value})


def test_offloading_is_of_fsdp() -> None:
    with pytest.raises(ValueError, match="offload is of fsdp; give strategy='fsdp' too"):
        ParallelConfig(offload=True)
    assert ParallelConfig("fsdp", offload=True).offload


def test_a_broken_file_is_named(tmp_path) -> None:
    (tmp_path / "run.toml").write_text("steps = = 3")
    with pytest.raises(ValueError, match=r"run\.toml: "):
        TrainConfig.from_toml(tmp_path / "run.toml")
    (tmp_path / "run.toml").write_text("[run]\nstep = 3")
    with pytest.raises(ValueError, match=r"run\.toml: unknown key run\.step"):
        TrainConfig.from_toml(tmp_path / "run.toml")


def test_changes_name_what_differs() -> None:
    default = TrainConfig()
    other = replace(default, run=replace(default.run, steps=3), data=DataConfig(sources=("x",)))
    assert default.changes(other) == {"run.steps": (1000, 3), "data.sources": ((), ("x",))}
    assert default.changes(TrainConfig()) == {}


def test_an_absent_sparse_config_is_a_change() -> None:
    with_one = TrainConfig(model=GPT2Config(sparse_config=SparseAttentionConfig(window_size=9)))
    names = with_one.changes(TrainConfig(model=GPT2Config()))
    assert names["model.sparse_config.window_size"] == (9, None)


def test_reading_a_config_loads_no_torch() -> None:
    code = "import sys, gossamer.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
