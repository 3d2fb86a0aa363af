"""ZeRO-3: the model partitioned over ranks, its gradients and its AdamW, through DeepSpeed.

DeepSpeed's settings are generated here from ours and nothing passes through, because DeepSpeed ignores keys that it
does not know. Invariants: gradients are sums over ranks of what `backward` was given, whatever the world; a step
never sees a gradient of an earlier one (ZeRO-3 keeps the last gradient of a parameter that got none, so its buffer is
cleared).
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # before deepspeed is imported

import deepspeed

from janus_dist.config.train import EngineConfig, OptimConfig
from janus_dist.engine.world import World

LossFunction = Callable[[Any], tuple[Tensor, Any]]


# DeepSpeed would compile a C++ extension for ranks of one machine at first use: a minute, a compiler, and a lock file
# that a killed process leaves behind for ever. Gloo does the same on CPU.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class ZeroEngine:
    """A model under ZeRO-3 with its optimizer."""

    def __init__(self, model: nn.Module, engine: EngineConfig, optim: OptimConfig, world: World):
        """Partition `model`; what requires gradients must have been decided before."""
        self.world = world
        self.model = model
        self.trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=_adamw(model, optim),
            config=deepspeed_config(engine, optim, world.size),
            dist_init_required=False,
        )
        self.names = {parameter.ds_id: name for name, parameter in model.named_parameters()}

    @property
    def module(self) -> nn.Module:
        """The model, its parameters partitioned."""
        return self.model

    def micro_step(self, loss_of: LossFunction, batch: Any, last: bool) -> Any:
        """Forward and backward of one micro-step; `loss_of` maps the model's output to (scalar loss, what to return).

        The gradient accumulated over micro-steps and ranks is that of the sum of their losses.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        loss, kept = loss_of(self.deepspeed(batch))
        # reduction averages over ranks, so multiplying by their number makes it a sum
        self.deepspeed.backward(loss * self.world.size, scale_wrt_gas=False)
        return kept

    def step(self, lr: float) -> float:
        """Clip and apply the accumulated gradient with learning rate `lr`; returns its norm before clipping.

        A gradient that is not finite changes nothing and returns infinity.
        """
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
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": engine.reduce_bucket_elements,
            "stage3_prefetch_bucket_size": engine.prefetch_elements,
            "stage3_param_persistence_threshold": engine.persist_elements,
            "sub_group_size": 1_000_000_000,
            "log_trace_cache_warnings": True,
        },
        "steps_per_print": 2**62,  # figures are ours to print
        "wall_clock_breakdown": False,
    }


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
        fused=torch.cuda.is_available() or None,
    )
