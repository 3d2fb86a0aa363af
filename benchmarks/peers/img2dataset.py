"""img2dataset's Resizer on the images of a folder: what its workers do to each download, in this one process.

Its module is loaded by its file, since the package imports its command line (fire, pyspark) for it.

    .venv-peers/bin/python benchmarks/peers/img2dataset.py FOLDER SIDE QUALITY

Prints CPU milliseconds an image. Mode `border`: long side to SIDE, padded; bicubic either way.
"""

import importlib.util
import io
import json
import sys
import time
from pathlib import Path


def main(folder: Path, side: int, quality: int) -> None:
    spec = importlib.util.find_spec("albumentations")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parents[1] / "img2dataset" / "resizer.py"
    loaded = importlib.util.spec_from_file_location("resizer", path)
    assert loaded is not None and loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    resize = module.Resizer(side, "border", False, "cubic", "cubic", encode_quality=quality)
    images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    for image in images[:2]:
        resize(io.BytesIO(image))
    began = time.process_time()
    for image in images:
        encoded, *_, error = resize(io.BytesIO(image))
        if error or not encoded:
            raise SystemExit(f"img2dataset refused an image: {error}")
    print(json.dumps({"ms": 1e3 * (time.process_time() - began) / len(images)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
