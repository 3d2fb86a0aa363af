"""Step of the generation stream: captions as prompts, and the crops that the VQ tokenizer turns into ids.

Invariant: the choice of shortened captions and of the position of crops depends only on the records' keys.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.inputs import marks, media
from data_pipelines.inputs.keys import drawn
from data_pipelines.record import Record, StepResult
from data_pipelines.steps import keep
from data_pipelines.steps.words import check_length, check_texts, first_sentence, words
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import images
from janus_dist.data.chat import generation_prompt_ids, image_end_ids
from janus_dist.data.sample import GenerationSample
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import RecordError


@dataclass(frozen=True)
class PromptAndCrop:
    """A sample without its VQ ids."""

    key: str
    prompt_ids: NDArray[np.uint32]
    """[ids]."""
    pixels: NDArray[np.uint8]
    """[side, side, 3]: the crop that is encoded as VQ ids."""
    facts: tuple[tuple[str, float], ...]
    """(name, value) pairs for histograms."""


class Generation:
    """The step of the generation stream."""

    def __init__(self, recipe: BaseRecipe, config: InputConfig, tokenizer: Tokenizer):
        self.tokenizer, self.chat, self.model = tokenizer, recipe.data.chat, recipe.model
        self.max_pixels = recipe.pipeline.max_image_pixels
        self.first_sentence_share, self.crop = config.first_sentence_share, config.crop
        self.rules, self.picture_rules = keep.split(config.where)

    def check(self, record: Record) -> None:
        """Check all but the picture and the length in tokens; raises DataError or DroppedByRule."""
        keep.check(self.rules, {**record.columns, keep.CAPTION_CHARS: len(record.caption.strip())})
        mark = marks.IMAGE.search(words(record.caption, "the caption"))
        if mark and not (mark["path"] and media.medium_of_text(mark["path"], "image") is None):
            raise RecordError(
                "images", f"the caption has the mark {mark[0]}; a caption describes one image and shows none"
            )
        if len(record.pictures) != 1:
            raise RecordError("images", f"{len(record.pictures)} images, but a caption describes one")

    def prepare(self, record: Record) -> PromptAndCrop:
        """Return prompt and crop of a record; raises DataError or DroppedByRule."""
        caption = words(record.caption, "the caption")
        if is_shortened(record.key, self.first_sentence_share):
            caption = first_sentence(caption)
        check_texts(self.tokenizer, [caption], self.model)
        prompt_ids = generation_prompt_ids(self.tokenizer, self.chat, caption)
        prompt_ids += image_end_ids(self.tokenizer, self.chat)
        check_length(len(prompt_ids) + self.model.image_ids, self.model)
        image = images.peek(record.pictures[0].content or b"", self.max_pixels)
        measures = keep.measures(image)
        keep.check(self.picture_rules, measures)
        position = 0.5 if self.crop == "center" else drawn(f"crop {record.key}")
        pixels = np.asarray(images.resize_and_crop(images.decode(image), self.model.image_size, position))
        facts = (*measures.items(), (keep.CAPTION_CHARS, len(record.caption.strip())))
        return PromptAndCrop(record.key, np.array(prompt_ids, dtype=np.uint32), pixels, facts)

    def finish(self, prepared: PromptAndCrop, vq_ids: NDArray[np.uint16]) -> StepResult:
        """Return the sample. `vq_ids`: ids of its pixels, [ids] uint16."""
        return StepResult([(prepared.key, GenerationSample(prepared.prompt_ids, vq_ids))], prepared.facts)


def is_shortened(key: str, share: float) -> bool:
    """Return whether a key is in the `share` of all keys whose captions are cut to their first sentence."""
    return drawn(key) < share
