"""ZeRO-3: the model partitioned over ranks, its gradients and its AdamW, through DeepSpeed.

DeepSpeed's settings are generated here from ours and nothing passes through, because DeepSpeed ignores keys that it
does not know. Invariants: gradients are sums over ranks of what `backward` was given, whatever the world; a step
never sees a gradient of an earlier one (ZeRO-3 keeps the last gradient of a parameter that got none, so its buffer is
cleared).
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

# DeepSpeed would compile a C++ extension for ranks of one machine at first use: a minute, a compiler, and a lock file
# that a killed process leaves behind for ever. Gloo does the same on CPU.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
"""DeepSpeed's words for ours."""


class ZeroEngine:
    """A model under ZeRO-3 with its optimizer."""

    def __init__(
        self, model: nn.Module, made: Iterable[nn.Module], engine: EngineConfig, optim: OptimConfig, world: World
    ):
        """Partition `model`; what requires gradients must have been decided before.

        `made` gives its modules, children before parents, each as soon as its own parameters have values: a rank never
        holds more than one of them whole. What counts are the first rank's values.
        """
        assert engine.dtype != "auto", "decided before: train/precision.py"
        self.world = world
        self.model = model
        self.trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        settings = deepspeed_config(engine, optim, world.size)
        deepspeed.init_distributed("nccl" if world.device.type == "cuda" else "gloo")  # takes the group that there is
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
        """The model, its parameters partitioned."""
        return self.model

    def micro_step(self, *inputs: Any, last: bool) -> Any:
        """Forward and backward of one micro-step; the model gives (scalar loss, what to return) of `inputs`.

        The gradient accumulated over micro-steps and ranks is that of the sum of their losses.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        loss, kept = self.deepspeed(*inputs)
        # reduction averages over ranks, so multiplying by their number makes it a sum
        self.deepspeed.backward(loss * self.world.size, scale_wrt_gas=False)
        return kept

    def train(self) -> None:
        """Training mode, but for parts that are frozen."""
        self.deepspeed.train()
        train_mode(self.model)

    def forward(self, *inputs: Any) -> Any:
        """What the model returns of `inputs` beside its loss, in evaluation mode and without gradients; all ranks
        call it in step."""
        self.deepspeed.eval()
        with torch.no_grad():
            _, kept = self.deepspeed(*inputs)
        self.train()
        return kept

    def step(self, lr: float, skip: bool = False) -> float:
        """Clip and apply the accumulated gradient with learning rate `lr`; returns its norm before clipping.

        A gradient that is not finite changes nothing and returns infinity; so does one to `skip`, which all ranks must
        want together.
        """
        if skip:  # stage 3 leaves out, with all that it counts, a step whose norm is not finite
            self.optimizer.grad_partitions_flat_buffer.fill_(torch.nan)
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = lr
        self.deepspeed.step()
        self.optimizer.grad_partitions_flat_buffer.zero_()
        norm = self.deepspeed.get_global_grad_norm()
        assert norm is not None, "a step has a norm"
        return float(norm)


def deepspeed_config(engine: EngineConfig, optim: OptimConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's settings, every default that matters set by hand."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # a micro-step takes one Batch, whatever it holds
        "gradient_accumulation_steps": 1,
        "train_batch_size": world,
        "gradient_clipping": optim.grad_clip,
        "bf16": {"enabled": engine.dtype == "bfloat16"},
        # one rank sums nothing, so its gradients go to the buffer in the precision that the backward gave them
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
        "steps_per_print": 2**62,  # figures are ours to print
        "wall_clock_breakdown": False,
    }


def _hpz_group(ranks: int) -> Any:
    """The group that keeps weights once more, made once: `zero.Init`, called for each module, would make it again."""
    if ranks == 1:
        return None
    if groups._get_zero_param_intra_parallel_group() is None:
        groups._create_zero_param_parallel_group(ranks)
    return groups._get_zero_param_intra_parallel_group()


def _partition(module: nn.Module, dtype: torch.dtype, settings: dict[str, Any], hpz_group: Any) -> None:
    """Leave this rank's share of a module's own parameters, in `dtype`."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    deepspeed.zero.Init(module=module, config_dict_or_path=settings, zero_param_parallel_group=hpz_group)


def _adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over what is trainable: matrices decay, vectors (norms, biases) do not."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,  # twice as fast on one flat tensor of a partition, on a CPU too
    )
