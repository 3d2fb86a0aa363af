"""Pages for people: HTML of one file that needs nothing else, not even a network.

Invariant: what comes from data or settings is escaped; only our own plots are markup. A name that a template misses is
an error.
"""

import json
import time
from pathlib import Path
from typing import Any

import jinja2

from janus_dist.monitor.console import count, duration, figure

TEMPLATES = Path(__file__).parent / "templates"
PLAIN_BARS = str.maketrans("｜▁", "|_")  # noqa: RUF001 - in the names of special tokens, and absent from many fonts


def render(template: str, **values: Any) -> str:
    """Return the page of a template in `templates/`, as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "percent": lambda value: f"{value:.1%}",
        "number": lambda value: f"{value:,}",
        "short": count,
        "figure": figure,
        "duration": duration,
        "json": json.dumps,
        "plain_bars": lambda text: text.translate(PLAIN_BARS),
        "clock": lambda value: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)),
    }
    return environment.get_template(template).render(written=time.strftime("%Y-%m-%d %H:%M"), **values)
