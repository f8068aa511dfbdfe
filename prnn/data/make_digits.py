"""Make digits.xz from scikit-learn's copy of the UCI digits.

    pip download --no-deps --only-binary :all: scikit-learn==1.9.1
    python -m prnn.data.make_digits scikit_learn-1.9.1-*.whl

Nothing else imports this file. The origin is documented in DIGITS.md.
"""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import zipfile
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).with_name("digits.xz")


def main() -> None:
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        table = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz"))
    rows = np.loadtxt(io.BytesIO(table), delimiter=",").astype(np.uint8)  # [1797, 64 pixels of 0..16 and the label]
    OUTPUT.write_bytes(lzma.compress(rows.tobytes(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{OUTPUT}: {rows.shape[0]:,} images of {rows.shape[1] - 1} pixels, {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
