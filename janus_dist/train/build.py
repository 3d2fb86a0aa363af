"""Building a trainer from a recipe: join the process group, open the data, partition the model with ZeRO-3.

Invariant: differences between ranks are reported before any rank waits for another in a collective.
"""

from collections.abc import Callable
from functools import partial

from janus_dist.config.recipe import StageRecipe
from janus_dist.data.collate import DocumentFormat
from janus_dist.data.loader import Loader
from janus_dist.data.plan import Plan, open_shards
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.engine.world import World, join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.model import janus, single
from janus_dist.model.parts import set_trainable
from janus_dist.train.compatible import check_data
from janus_dist.train.context import TrainingRun
from janus_dist.train.precision import resolve_on_ranks
from janus_dist.train.startup import check_same
from janus_dist.train.trainer import Trainer
from janus_dist.train.validation import Validation
from janus_dist.weights.vq import load_vq


def build_trainer(recipe: StageRecipe, say: Callable[[str], None]) -> Trainer:
    """Return a trainer with open data and a model under ZeRO-3. `say` prints the console lines of rank 0.

    Raises ConfigError, DataError or ClusterError when the settings, data or devices of this rank do not fit the recipe
    or the other ranks; CheckpointError when the run's checkpoint cannot be read.
    """
    world = join(recipe.cluster, recipe.engine.timeout_s)
    check_same(recipe, world)  # before any collective in which a rank with other settings would make the others hang
    recipe = resolve_on_ranks(recipe, world)
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    shards = open_shards(recipe.data, recipe.mix, world.local_rank)
    check_data(recipe, tokenizer, shards)
    plan = Plan.of(recipe, shards)
    loader = Loader(
        plan,
        DocumentFormat.of(recipe, tokenizer),
        world.rank,
        world.size,
        ahead_bytes=recipe.data.read.ahead_mib * 2**20,
        max_bad_share=recipe.data.max_bad_share,
        node=world.node_ranks,
    )
    run = TrainingRun(recipe, plan, loader, _build_engine(recipe, world), say)
    has_validation = recipe.data.validation_root is not None
    return Trainer(run, Validation(recipe, tokenizer, shards, world) if has_validation else None)


def _build_engine(recipe: StageRecipe, world: World) -> ZeroEngine:
    """Return the model under ZeRO-3 with random weights; the parts in `train.trainable` require gradients."""
    model = janus.on_meta(recipe.model)
    set_trainable(model, recipe.train.trainable)
    if recipe.model.reads_by == "vq":
        vq = load_vq(recipe.model, recipe.data.vq_weights).to(world.device)  # pyright: ignore[reportArgumentType]
        model.as_read = partial(single.read_by_vq, vq=vq)
    janus.checkpoint_activations(model, recipe.engine.activation_checkpointing)
    made = janus.made(model, recipe.run.seed, world.device)
    return ZeroEngine(model, made, recipe.engine, recipe.optim, world)
