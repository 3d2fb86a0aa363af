"""ZeRO-3: the model partitioned over ranks, its gradients and its AdamW, through DeepSpeed.

DeepSpeed's settings are generated here from ours and no others are passed through, because DeepSpeed ignores unknown
keys. Invariants: the gradient is that of the sum of the losses over ranks, for any number of ranks; a step never uses a
gradient of an earlier step (ZeRO-3 keeps the last gradient of a parameter that got none, so its buffer is cleared).
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # before deepspeed is imported

import deepspeed
from deepspeed.utils import groups

from janus_dist.config.train import EngineConfig, OptimConfig
from janus_dist.engine.world import World
from janus_dist.model.parts import train_mode

# DeepSpeed would compile a C++ extension for ranks of one machine at first use: this takes a minute and a compiler, and
# a killed process leaves its lock file behind for ever. Gloo offers the same on CPU.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
"""DeepSpeed's names of our dtypes."""


class ZeroEngine:
    """A model under ZeRO-3 with its optimizer."""

    def __init__(
        self, model: nn.Module, made: Iterable[nn.Module], engine: EngineConfig, optim: OptimConfig, world: World
    ):
        """Partition `model`; `requires_grad` of its parameters must be set before.

        `made` yields the modules of `model`, children before parents, each as soon as its own parameters have values: a
        rank never holds more than one unpartitioned module. The values of rank 0 are used.
        """
        assert engine.dtype != "auto", "resolve it before: train/precision.py"
        self.world = world
        self.model = model
        self.trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        settings = deepspeed_config(engine, optim, world.size)
        deepspeed.init_distributed("nccl" if world.device.type == "cuda" else "gloo")  # uses the existing group
        group = _hpz_group(engine.hpz_ranks)
        for module in made:
            _partition(module, getattr(torch, engine.dtype), settings, group)
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=_adamw(model, optim),
            config=settings,
            dist_init_required=False,
        )
        self.names = {parameter.ds_id: name for name, parameter in model.named_parameters()}

    @property
    def module(self) -> nn.Module:
        """Return the model, whose parameters are partitioned."""
        return self.model

    def micro_step(self, *inputs: Any, last: bool) -> Any:
        """Run forward and backward of the model, which returns (scalar loss, output), and return the output.

        The gradient accumulated over micro-steps and ranks is that of the sum of their losses.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        loss, output = self.deepspeed(*inputs)
        # the reduction averages over ranks; multiplying by the number of ranks turns the mean into a sum
        self.deepspeed.backward(loss * self.world.size, scale_wrt_gas=False)
        return output

    def train(self) -> None:
        """Set training mode, except for frozen parts."""
        self.deepspeed.train()
        train_mode(self.model)

    def forward(self, *inputs: Any) -> Any:
        """Return the model's output without its loss, in evaluation mode and without gradients.

        All ranks call it at the same time.
        """
        self.deepspeed.eval()
        with torch.no_grad():
            _, output = self.deepspeed(*inputs)
        self.train()
        return output

    def step(self, lr: float, skip: bool = False) -> float:
        """Clip and apply the accumulated gradient with learning rate `lr`; return its norm before clipping.

        When the gradient is not finite, or with `skip`, which must be the same on all ranks, change nothing and return
        infinity.
        """
        if skip:  # stage 3 skips a step whose norm is not finite, including all its counters
            self.optimizer.grad_partitions_flat_buffer.fill_(torch.nan)
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = lr
        self.deepspeed.step()
        self.optimizer.grad_partitions_flat_buffer.zero_()
        norm = self.deepspeed.get_global_grad_norm()
        assert norm is not None, "grad_norm is None after a step"
        return float(norm)


def deepspeed_config(engine: EngineConfig, optim: OptimConfig, world: int) -> dict[str, Any]:
    """Return DeepSpeed's settings for `world` ranks, with every default that matters set explicitly."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # a micro-step takes one Batch of any size
        "gradient_accumulation_steps": 1,
        "train_batch_size": world,
        "gradient_clipping": optim.grad_clip,
        "bf16": {"enabled": engine.dtype == "bfloat16"},
        # a single rank does not reduce, so its gradients go to the buffer in the precision of the backward
        "communication_data_type": DTYPES[engine.reduce_dtype if world > 1 else engine.dtype],
        "data_types": {"grad_accum_dtype": DTYPES[engine.accumulate_dtype]},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": engine.bucket_elements,
            "stage3_prefetch_bucket_size": engine.bucket_elements,
            "stage3_param_persistence_threshold": engine.persist_elements,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "sub_group_size": 1_000_000_000,
            "zero_hpz_partition_size": engine.hpz_ranks,
            "log_trace_cache_warnings": True,
        },
        "steps_per_print": 2**62,  # never: our own console prints the metrics
        "wall_clock_breakdown": False,
    }


def _hpz_group(ranks: int) -> Any:
    """Return the group of ranks that keeps a secondary copy of the weights (hpZ), or None when `ranks` is 1 (hpZ off).

    The group is created once here, because `zero.Init`, which is called for each module, would create it each time.
    """
    if ranks == 1:
        return None
    if groups._get_zero_param_intra_parallel_group() is None:
        groups._create_zero_param_parallel_group(ranks)
    return groups._get_zero_param_intra_parallel_group()


def _partition(module: nn.Module, dtype: torch.dtype, settings: dict[str, Any], hpz_group: Any) -> None:
    """Convert a module's own parameters to `dtype` and keep only this rank's share of them."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    deepspeed.zero.Init(module=module, config_dict_or_path=settings, zero_param_parallel_group=hpz_group)


def _adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters: weight decay for matrices, none for vectors (norms, biases)."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,  # twice as fast on the flat tensor of a partition, also on a CPU
    )
