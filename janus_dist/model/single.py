"""Understanding by the VQ tokenizer: the single encoder that the paper compares Janus with (Janus, table 5, A).

An image to read is embedded as an image that is drawn is: its VQ ids through the generation embedding and adaptor, at
the positions that SigLIP's features would take. Invariant: nothing else of a batch changes, so runs with one encoder
and with two read the same samples in the same order.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.batch import Batch
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import Janus


def read_by_vq(batch: Batch, vq: JanusVQVAE) -> Batch:
    """Return the batch with its images as VQ ids; the vision tower gets a dummy, and array shapes are those of the
    batch."""
    if len(batch.pixel_positions) == 0:
        return batch
    ids = vq_model.encode(vq, vq_model.to_float(batch.pixels)).flatten()
    drawn = batch.vq_ids[: len(batch.vq_positions)]  # without the dummy of a batch that draws nothing
    return replace(
        batch,
        pixels=batch.pixels[:1],
        pixel_positions=batch.pixel_positions[:0],
        vq_ids=torch.cat([drawn, ids]),
        vq_positions=torch.cat([batch.vq_positions, batch.pixel_positions]),
    )


@torch.inference_mode()
def image_features(model: Janus, vq: JanusVQVAE, images: Tensor, batch: int) -> Tensor:
    """Return [image, image_ids, hidden] features for the language model of images [image, 3, side, side] uint8."""
    core = model.model
    chunks = (vq_model.to_float(chunk.to(model.device)) for chunk in images.split(batch))
    return torch.cat([core.generation_aligner(core.generation_embeddings(vq_model.encode(vq, one))) for one in chunks])
