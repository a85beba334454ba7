"""Draws docs/models/figures/NAME.png, a figure of each model's block. Run it after a change of a model.

    python docs/models/draw_blocks.py [DIRECTORY]

Data flows upwards. What the figures say of sizes comes from the registered configs.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, whatever the machine has

from matplotlib import pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.text import Text

from zoo import registry

HERE = Path(__file__).parent
PITCH = 1.0  # between two rows of boxes
HEIGHT = 0.66
TRUNK_WIDTH = 3.4
COLUMNS = (4.5, 7.4, 10.3)  # where a branch's boxes stand; the trunk is at 0
BRANCH_WIDTH = 2.7
PAIR_WIDTH = 4.15  # of two boxes side by side
FILL = {"weights": "#cfe2f3", "plain": "#ffffff"}
INK = "#333333"


@dataclass(frozen=True)
class Box:
    """A box of a figure; `weights` says whether it holds parameters."""

    text: str
    weights: bool = False


Row = list[Box | None]  # None: the line goes straight through


class Drawing:
    """A figure that grows upwards: the residual stream on the left, branches to its right."""

    def __init__(self):
        self.figure, self.axes = plt.subplots()
        self.boxes: list[tuple[FancyBboxPatch, Text]] = []
        self.y = 0.0  # of the next row
        self.top = 0.0  # where the residual stream ends as yet

    def trunk(self, text: str, *, weights: bool = False) -> float:
        """A box on the residual stream; returns its y."""
        y = self.y
        if y:
            self._line([(0, self.top), (0, y - HEIGHT / 2)], arrow=True)
        self._box(0, y, TRUNK_WIDTH, Box(text, weights))
        self.y, self.top = y + PITCH, y + HEIGHT / 2
        return y

    def branch(self, *rows: Row) -> float:
        """A branch that leaves the stream, goes up through `rows` and is added to it; returns the sum's y.

        Rows of one box are as wide as the branch, others have a box, or None, in every column.
        """
        first, last = self.y, self.y + (len(rows) - 1) * PITCH
        left = COLUMNS[0] - BRANCH_WIDTH / 2
        for i, row in enumerate(rows):
            y = first + i * PITCH
            if len(row) == 1:
                self._box(sum(COLUMNS) / 3, y, COLUMNS[2] - COLUMNS[0] + BRANCH_WIDTH, row[0])
            for x, box in zip(self._columns(row), row, strict=True):
                if len(row) > 1 and box is not None:
                    self._box(x, y, BRANCH_WIDTH if len(row) == 3 else PAIR_WIDTH, box)
            if i:
                self._connect(rows[i - 1], row, y - PITCH)
        self._line([(0, first), (left, first)], arrow=True)
        self.axes.add_patch(Circle((0, first), 0.05, color=INK))
        self._line([(left, last), (0.2, last)], arrow=True)
        self._line([(0, self.top), (0, last - 0.2)], arrow=True)
        self.axes.add_patch(Circle((0, last), 0.2, facecolor="white", edgecolor=INK, zorder=3))
        self.axes.text(0, last, "+", ha="center", va="center", fontsize=12, zorder=4)
        self.y, self.top = last + PITCH, last + 0.2
        return last

    def frame(self, first: float, label: str) -> None:
        """A frame around all from y `first` to here: what is repeated."""
        left, right = -TRUNK_WIDTH / 2 - 0.25, COLUMNS[2] + BRANCH_WIDTH / 2 + 0.3
        bottom, top = first - HEIGHT / 2 - 0.22, self.y - PITCH + HEIGHT / 2 + 0.22
        self.axes.add_patch(
            FancyBboxPatch(
                (left, bottom),
                right - left,
                top - bottom,
                boxstyle="round,pad=0,rounding_size=0.2",
                facecolor="#f4f4f4",
                edgecolor="#999999",
                zorder=0,
            )
        )
        self.axes.text(right - 0.1, top + 0.1, label, ha="right", va="bottom", fontsize=10, color=INK)
        self.y += 0.4

    def aside(self, start: float, end: float, text: str) -> None:
        """A line beside the stream, from it at y `start` into the box on it at y `end`."""
        x = -TRUNK_WIDTH / 2 - 0.75
        self._line([(0, start), (x, start), (x, end), (-TRUNK_WIDTH / 2, end)], arrow=True)
        self.axes.add_patch(Circle((0, start), 0.05, color=INK))
        self.axes.text(x - 0.12, (start + end) / 2, text, ha="right", va="center", fontsize=9, color=INK)

    def finish(self, title: str) -> None:
        """Title, legend and size."""
        self._line([(0, self.top), (0, self.y - PITCH / 2)], arrow=True)
        self.axes.text(0, self.y - PITCH / 2 + 0.05, "logits", ha="center", va="bottom", fontsize=10)
        self.axes.text(0, -0.75, "tokens", ha="center", va="top", fontsize=10)
        self._line([(0, -0.72), (0, -HEIGHT / 2)], arrow=True)
        centre = sum(COLUMNS) / 3
        self._box(centre - 0.9, -0.05, 0.5, Box("", weights=True))
        self.axes.text(centre - 0.5, -0.05, "holds parameters", ha="left", va="center", fontsize=9, color=INK)
        self.axes.set(xlim=(-4.0, COLUMNS[2] + BRANCH_WIDTH / 2 + 0.5), ylim=(-1.1, self.y + 0.1), aspect="equal")
        self.axes.axis("off")
        self.axes.set_title(title, fontsize=12, loc="left")
        width = COLUMNS[2] + BRANCH_WIDTH / 2 + 4.5
        self.figure.set_size_inches(0.62 * width, 0.62 * (self.y + 1.7))

    def _columns(self, row: Row) -> tuple[float, ...]:
        middle = sum(COLUMNS) / 3
        aside = (COLUMNS[2] - COLUMNS[0] + BRANCH_WIDTH - PAIR_WIDTH) / 2
        return {1: (middle,), 2: (middle - aside, middle + aside), 3: COLUMNS}[len(row)]

    def _connect(self, below: Row, above: Row, y: float) -> None:
        """Arrows between the row at `y` and the one over it, in the columns of the one that has more."""
        columns = self._columns(max(below, above, key=len))
        for i, x in enumerate(columns):
            through_below = len(below) > 1 and below[i] is None
            through_above = len(above) > 1 and above[i] is None
            start = y + (HEIGHT / 2 if not through_below else -HEIGHT / 2)
            end = y + PITCH - (HEIGHT / 2 if not through_above else -HEIGHT / 2)
            self._line([(x, start), (x, end)], arrow=not through_above)

    def _box(self, x: float, y: float, width: float, box: Box) -> None:
        corner = (x - width / 2, y - HEIGHT / 2)
        fill = FILL["weights" if box.weights else "plain"]
        patch = FancyBboxPatch(
            corner, width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.1", facecolor=fill, edgecolor=INK, zorder=2
        )
        self.axes.add_patch(patch)
        style = {"ha": "center", "va": "center", "fontsize": 8, "zorder": 3, "linespacing": 1.15}
        self.boxes.append((patch, self.axes.text(x, y, box.text, **style)))

    def _line(self, points: list[tuple[float, float]], *, arrow: bool) -> None:
        *_, before, end = points
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=INK, linewidth=1.1, zorder=1, solid_joinstyle="round")
        if arrow:
            style = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
            self.axes.annotate("", xy=end, xytext=before, arrowprops=style, zorder=1)


def _matrix(name: str, rows: int, columns: int | str) -> Box:
    shown = f"{columns:,}" if isinstance(columns, int) else columns
    return Box(f"{name}\n{rows:,} → {shown}", weights=True)


def _qkv(config: Any, kv_heads: int) -> Row:
    size = config.head_dim
    return [
        _matrix("q", config.embed_dim, f"{config.num_heads} x {size}"),
        _matrix("k", config.embed_dim, f"{kv_heads} x {size}"),
        _matrix("v", config.embed_dim, f"{kv_heads} x {size}"),
    ]


def _attend(config: Any, kv_heads: int, mask: str = "causal") -> Row:
    shared = "" if kv_heads == config.num_heads else f", {config.num_heads // kv_heads} query heads a kv head"
    return [Box(f"softmax(q kᵀ / √{config.head_dim}) v\n{mask}{shared}")]


def _o(config: Any, *, bias: bool = False) -> Row:
    inner = config.num_heads * config.head_dim
    return [_matrix("o, with bias" if bias else "o", inner, config.embed_dim)]


def _gated(config: Any) -> list[Row]:
    wide, narrow = config.mlp_dim, config.embed_dim
    return [
        [_matrix("gate", narrow, wide), _matrix("up", narrow, wide)],
        [Box("silu(gate) · up")],
        [_matrix("down", wide, narrow)],
    ]


def _table(config: Any) -> str:
    return f"token table\n{config.vocab_size:,} x {config.embed_dim:,}"


def cronica(drawing: Drawing, config: Any) -> None:
    """RMSNorm, interleaved rotary pairs, SwiGLU, tied head."""
    drawing.trunk(_table(config), weights=True)
    first = drawing.y + 0.4
    drawing.y = first
    norm = [Box("RMSNorm, with gain", weights=True)]
    rotate = Box("rotate pairs\n(2i, 2i+1)")
    heads = config.num_heads
    drawing.branch(norm, _qkv(config, heads), [rotate, rotate, None], _attend(config, heads), _o(config))
    drawing.branch(norm, *_gated(config))
    drawing.frame(first, f"{config.num_layers} times")
    drawing.trunk("RMSNorm, with gain", weights=True)
    drawing.trunk("head: the token table")


def llama(drawing: Drawing, config: Any) -> None:
    """RMSNorm, split-half rotary pairs, grouped-query attention, SwiGLU, a head of its own."""
    drawing.trunk(_table(config), weights=True)
    first = drawing.y + 0.4
    drawing.y = first
    norm = [Box("RMSNorm, with gain", weights=True)]
    rotate = Box(f"rotate pairs\n(i, i+{config.head_dim // 2})")
    kv_heads = config.num_kv_heads
    drawing.branch(norm, _qkv(config, kv_heads), [rotate, rotate, None], _attend(config, kv_heads), _o(config))
    drawing.branch(norm, *_gated(config))
    drawing.frame(first, f"{config.num_layers} times")
    drawing.trunk("RMSNorm, with gain", weights=True)
    drawing.trunk(f"head\n{config.embed_dim:,} → {config.vocab_size:,}", weights=True)


def nanochat(drawing: Drawing, config: Any) -> None:
    """Everything that gelu-d12 has beside a plain decoder."""
    drawing.trunk(_table(config), weights=True)
    drawing.trunk("RMSNorm, no gain")
    smear = drawing.trunk("smear:\n+ s · σ(gate) · token before", weights=True)
    first = drawing.y + 0.5
    drawing.y = first
    blend = drawing.trunk("a · x + b · x0", weights=True)
    drawing.aside(smear + 0.62, blend, "x0")
    norm = [Box("RMSNorm, no gain")]
    half = config.head_dim // 2
    rotate = Box(f"rotate pairs (i, i+{half})\nthe other way round")
    scaled = Box(f"{config.qk_norm_scale:g} · RMSNorm\nby head")
    with_values = [i for i in range(config.num_layers) if config.has_value_embedding(i)]
    values = Box(f"+ gated value table,\nlayers {with_values[0]}, {with_values[1]} .. {with_values[-1]}", weights=True)
    windows = config.windows()
    spans = f"windows {config.window_pattern} of {min(windows)} and {max(windows):,} before a token"
    drawing.branch(
        norm,
        _qkv(config, config.num_kv_heads),
        [rotate, rotate, values],
        [scaled, scaled, None],
        _attend(config, config.num_kv_heads, f"causal, {spans}"),
        _o(config),
    )
    name = {"gelu_tanh": "GELU (tanh)", "relu_squared": "ReLU²"}[config.activation]
    end = drawing.branch(
        norm,
        [_matrix("up", config.embed_dim, config.mlp_dim)],
        [Box(name)],
        [_matrix("down", config.mlp_dim, config.embed_dim)],
    )
    drawing.frame(first, f"{config.num_layers} times, each layer with its own a and b")
    backout = drawing.trunk("backout: x - c · x_mid", weights=True)
    drawing.aside(end + 0.36, backout, f"x_mid: x after\nlayer {config.num_layers // 2}")
    drawing.trunk("RMSNorm, no gain")
    drawing.trunk("head: the token table")
    drawing.trunk(f"{config.logit_softcap:g} · tanh(logits / {config.logit_softcap:g})")


def bwetaf(drawing: Drawing, config: Any) -> None:
    """Rotary positions over the full width, at the embedding too; no final norm."""
    drawing.trunk(_table(config), weights=True)
    drawing.trunk(f"rotate pairs (i, i+{config.embed_dim // 2})\nover the full width")
    first = drawing.y + 0.4
    drawing.y = first
    norm = [Box("RMSNorm, with gain", weights=True)]
    inner, kv_inner = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def wide_rotation(width: int) -> Box:
        return Box(f"rotate {width} features,\npairs (i, i+{width // 2})")

    drawing.branch(
        norm,
        _qkv(config, config.num_kv_heads),
        [wide_rotation(inner), wide_rotation(kv_inner), None],
        _attend(config, config.num_kv_heads),
        _o(config, bias=True),
        [Box(f"dropout {config.dropout:g}, in training")],
    )
    drawing.branch(
        norm,
        [Box(f"up and gate in one, with bias\n{config.embed_dim:,} → 2 x {config.mlp_dim:,}", weights=True)],
        [Box("silu(gate) · up")],
        [_matrix("down, with bias", config.mlp_dim, config.embed_dim)],
    )
    drawing.frame(first, f"{config.num_layers} times")
    drawing.trunk("head: the token table\nno norm before it")


def tiny(drawing: Drawing, config: Any) -> None:
    """LayerNorm, learned positions, ReLU, biases, a head of its own."""
    drawing.trunk(_table(config), weights=True)
    drawing.trunk(f"+ position table\n{config.max_seq_len} x {config.embed_dim}", weights=True)
    first = drawing.y + 0.4
    drawing.y = first
    norm = [Box("LayerNorm, with gain and bias", weights=True)]
    drawing.branch(norm, _qkv(config, config.num_heads), _attend(config, config.num_heads), _o(config, bias=True))
    drawing.branch(
        norm,
        [_matrix("up, with bias", config.embed_dim, config.mlp_dim)],
        [Box("ReLU")],
        [_matrix("down, with bias", config.mlp_dim, config.embed_dim)],
    )
    drawing.frame(first, f"{config.num_layers} times")
    drawing.trunk("LayerNorm,\nwith gain and bias", weights=True)
    drawing.trunk(f"head, with bias\n{config.embed_dim} → {config.vocab_size}", weights=True)


FIGURES: dict[str, Callable[[Drawing, Any], None]] = {
    "cronica-5m": cronica,
    "bwetaf-97m": bwetaf,
    "gelu-d12": nanochat,
    "kodalite-1.3b": llama,
    "tiny-lm": tiny,
}


def draw(name: str) -> Drawing:
    """The finished figure of a registered model."""
    drawing = Drawing()
    FIGURES[name](drawing, registry.describe(name).make_config())
    drawing.finish(name)
    return drawing


def main(directory: Path) -> None:
    """Write the figures of all models."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        figure = draw(name).figure
        figure.savefig(directory / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "figures")
