"""Reading and filtering: what an item points at, and whether it can be used at all."""

from data_pipelines.steps.rows import Row
from janus_dist.data import storage
from janus_dist.errors import DataError


def read_image(row: Row) -> Row:
    """Add `encoded`: the bytes at `image`, a path or s3:// URL."""
    try:
        encoded = storage.read(row["image"])
    except FileNotFoundError as error:
        raise DataError(f"missing: no file {row['image']}") from error
    except OSError as error:
        raise DataError(f"does not open: {type(error).__name__}: {error}") from error
    if not encoded:
        raise DataError("empty: the file has no bytes")
    return {"encoded": encoded}


def check_turns(row: Row) -> Row:
    """Refuse conversations without a question, or with a question or an answer that says nothing."""
    if not row["turns"]:
        raise DataError("empty: no question")
    for number, (question, answer) in enumerate(row["turns"]):
        for name, words in (("question", question), ("answer", answer)):
            if not (words or "").strip():
                raise DataError(f"empty: {name} {number} has no words")
    return {}


def check_caption(row: Row) -> Row:
    """Refuse captions without words."""
    if not (row["caption"] or "").strip():
        raise DataError("empty: the caption has no words")
    return {}


def check_text(row: Row) -> Row:
    """Refuse documents without words."""
    if not (row["text"] or "").strip():
        raise DataError("empty: the text has no words")
    return {}
