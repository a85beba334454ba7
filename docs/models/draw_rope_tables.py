"""Draws docs/models/figures/rope-tables.png: how far rotary tables in bfloat16 are from exact ones, by position.

python docs/models/draw_rope_tables.py [DIRECTORY]
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")  # no window, whatever the machine has

from matplotlib import pyplot as plt

from zoo import registry
from zoo.layers.rotary import rotary_tables

HERE = Path(__file__).parent
BIN = 16


def table_error(num_positions: int, width: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square difference of the cosines in bfloat16 from those in float32, over BIN positions at a time.

    Returns the middle of each bin and its error. Position 0, which is exact, is left out: 256 then ends a bin.
    """
    positions = jnp.arange(1, num_positions // BIN * BIN + 1)
    exact, rounded = (rotary_tables(positions, width, theta, dtype)[0] for dtype in (jnp.float32, jnp.bfloat16))
    square = np.square(np.asarray(exact) - np.asarray(rounded, np.float32)).reshape(-1, BIN, exact.shape[-1])
    return np.asarray(positions).reshape(-1, BIN).mean(axis=1), np.sqrt(square.mean(axis=(1, 2)))


def main(directory: Path) -> None:
    """Write the figure."""
    bwetaf, koda = (registry.describe(name).make_config() for name in ("bwetaf-97m", "kodalite-1.3b"))
    figure, axes = plt.subplots(figsize=(8, 3.6))
    for name, config, width in (
        ("bwetaf-97m", bwetaf, bwetaf.embed_dim),
        ("kodalite-1.3b", koda, koda.head_dim),
    ):
        where, error = table_error(config.max_seq_len, width, config.rope_theta)
        axes.plot(where, error, linewidth=1.2, label=f"{name}, {width} wide")
    axes.axvline(256, color="#888888", linewidth=0.8, linestyle="--")
    axes.text(264, 0.42, "position 256", color="#555555", va="top")
    axes.set(xlabel="position", ylabel="rms error of the cosines", xlim=(0, bwetaf.max_seq_len))
    axes.set_ylim(bottom=0)
    axes.set_title("Rotary tables in bfloat16 against exact ones", loc="left")
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(directory / "rope-tables.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "figures")
