"""The book's colors and the look of its plots."""

import matplotlib.pyplot as plt
from cycler import cycler

PALETTE = {
    "query": "#0072B2",
    "key": "#E69F00",
    "value": "#009E73",
    "attention": "#D55E00",
    "mask": "#333333",
    "residual": "#CC79A7",
    "norm": "#F0E442",
    "feed_forward": "#56B4E9",
    "embedding": "#882255",
    "position": "#999933",
    "output": "#332288",
    "encoder": "#7B6FD0",
    "decoder": "#8A4B14",
    "neutral": "#757575",
}


def use_book_style() -> None:
    """Give matplotlib the book's look: legible on a phone, safe for the color-blind."""
    roles = ("query", "attention", "value", "key", "residual", "feed_forward", "output")
    cycle = [PALETTE[role] for role in roles]
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 120,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 12,
            "axes.facecolor": "white",
            "axes.titlesize": 13,
            "axes.labelsize": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=cycle),
            "axes.axisbelow": True,
            "xtick.labelsize": 12,
            "ytick.labelsize": 12,
            "legend.fontsize": 12,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "image.cmap": "Blues",
            "image.aspect": "auto",
        }
    )
