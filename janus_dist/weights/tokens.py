"""The tokenizer and the conversation format as files of transformers.

Invariants: a special token is always found by its name; a conversation through the exported template and tokenizer
gives the ids that training gave it.
"""

import json
from pathlib import Path

import tokenizers
from tokenizers.processors import Sequence, TemplateProcessing

from janus_dist.config.data import ChatConfig
from janus_dist.data.tokenizer import BOI, BOS, EOI, EOS, IMAGE, PAD, Tokenizer
from janus_dist.weights.configs import write_json

TEMPLATE = """\
{%- macro written(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- else -%}
{%- for part in content -%}
{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
{%- if part.type == 'image' -%}{{ IMAGE }}{%- else -%}{{ part.text | trim }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set seen = namespace(image=false, system=false) -%}
{%- for message in messages -%}
{%- if message.role | lower == 'system' -%}{%- set seen.system = true -%}
{%- elif message.content is not string -%}
{%- for part in message.content if part.type == 'image' -%}{%- set seen.image = true -%}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if seen.image and not seen.system -%}{{ SYSTEM }}{%- endif -%}
{%- for message in messages -%}
{%- if message.role | lower == 'system' -%}{{ written(message.content) + '\\n\\n' }}
{%- elif message.role | lower == 'user' -%}{{ USER + ': ' + written(message.content) + '\\n\\n' }}
{%- else -%}{{ ASSISTANT + ': ' + written(message.content) + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ASSISTANT + ':' }}{%- endif -%}
"""
"""Parts of a message stand on lines of their own; the recipe's system prompt stands before conversations with an image,
as in training, unless they bring their own. Names in capitals are set before it."""


def chat_template(chat: ChatConfig) -> str:
    """Return the Jinja template of a recipe's conversation format."""
    values = {
        "IMAGE": IMAGE,
        "USER": chat.user,
        "ASSISTANT": chat.assistant,
        "SYSTEM": f"{chat.system_prompt}\n\n" if chat.system_prompt else "",
    }
    # a string of JSON is one of Jinja too
    return "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in values.items()) + TEMPLATE


def write_tokenizer(folder: Path, tokenizer: Tokenizer, source: str | Path, max_positions: int, owner: str) -> None:
    """Write `tokenizer.json` and the files beside it; `owner` is the processor that they belong to."""
    (folder / "tokenizer.json").write_text(_with_begin(source, tokenizer.bos), encoding="utf-8")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    janus = owner == "JanusProcessor"
    named = {"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI} if janus else {}
    write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            **named,
            # as its tokenizer.json says, nothing rebuilt: the class for Llama replaces the splitting into words
            "tokenizer_class": "PreTrainedTokenizerFast" if janus else "LlamaTokenizerFast",
            "processor_class": owner,
            "model_max_length": max_positions,
            "padding_side": "left",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
        },
    )
    more = {"additional_special_tokens": [IMAGE, BOI, EOI]}
    write_json(folder / "special_tokens_map.json", {**special, **more})


def _with_begin(source: str | Path, bos: int) -> str:
    """Return a `tokenizer.json` that puts begin-of-sentence before a text, as the published ones do."""
    content = Path(source).read_text(encoding="utf-8")
    inner = tokenizers.Tokenizer.from_str(content)
    if inner.encode("").ids[:1] == [bos]:
        return content
    begin = TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)])
    inner.post_processor = Sequence([inner.post_processor, begin]) if inner.post_processor else begin
    return inner.to_str(pretty=True)
