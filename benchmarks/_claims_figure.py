"""The figure of docs/claims.md, from the results of ``benchmarks/claims.py``: the seeds of every row, and their mean.

python benchmarks/_claims_figure.py docs/claims.png
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"
PANELS = {
    "claims": "synthetic set: masking and target",
    "claims_frames": "synthetic set: frames of a clip",
    "claims_actions": "236 real clips: masking and target",
}
READING, FIRST = "order kept", "adaptive 15 %"
BASELINES = {"untrained": "the encoder untrained", "pixels": "pixel statistics, nothing learned"}


def main() -> None:
    """Draw one panel per result."""
    rows = {title: json.loads((RESULTS / f"{name}.json").read_text())["rows"] for name, title in PANELS.items()}
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    axes = figure.subplots(1, len(rows))
    for axis, (title, found) in zip(axes, rows.items(), strict=True):
        _panel(axis, title, found)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(sys.argv[1], dpi=90, metadata={"Software": None})


def _panel(axis: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [row for row in rows if row["row"] not in BASELINES]
    for place, row in enumerate(shown):
        runs = [100 * value for value in row.get(f"{READING}: runs") or [row[READING]]]
        axis.plot(runs, [place] * len(runs), "o", color="#0072B2", alpha=0.45, markersize=5)
        axis.plot(100 * row[READING], place, "|", color="#222222", markersize=16, markeredgewidth=2)
    for row, colour in zip((row for row in rows if row["row"] in BASELINES), ("#D55E00", "#009E73"), strict=False):
        axis.axvline(100 * row[READING], linestyle="--", linewidth=1, color=colour, label=BASELINES[row["row"]])
    axis.set_yticks(range(len(shown)), [_name(title, row["row"]) for row in shown])
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(f"accuracy of a linear probe, {READING}, %")
    axis.spines[["top", "right"]].set_visible(False)


def _name(title: str, row: str) -> str:
    """What a row is called in its panel: the first one, with which all are compared, has 128 frames."""
    return "128 frames" if "frames" in title and row == FIRST else row


if __name__ == "__main__":
    main()
