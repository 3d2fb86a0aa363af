"""HTML pages that are one self-contained file each and need no network.

Invariant: text from data or settings is escaped; only our own plots are markup. A variable that a template lacks is an
error.
"""

import json
import time
from pathlib import Path
from typing import Any

import jinja2

from janus_dist.monitor.console import count, duration, figure

TEMPLATES = Path(__file__).parent / "templates"
PLAIN_BARS = str.maketrans("｜▁", "|_")  # noqa: RUF001 - used in the names of special tokens, missing in many fonts


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template in `templates/` with `values` as its variables."""
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
