"""Figure 1: average quality against training duration."""

import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.figures import drawing, lines
from mergetime.publishing.figures.style import styles
from mergetime.publishing.inputs import Inputs

_CAPTION = (
    "Average accuracy of merged models over the accuracy domains, against the training duration of their experts."
)


def figure_1(inputs: Inputs) -> drawing.Drawing:
    """Average accuracy of merged models against training duration, one panel per base (figure 1 of the paper).

    The average is over the accuracy domains, in percent. Bands are one standard error over test items; with several
    seeds, bars are one standard deviation over seeds. Horizontal lines: the base, and the mean of the experts at T*,
    each on its own domain. A hollow marker rests on a T* that is no interior minimum.

    Args:
        inputs: results, and the pool where the study has several at one duration.

    Returns:
        The figure, and the numbers that it draws in the columns of ``lines.COLUMNS``.

    Raises:
        ValueError: in one line, if no duration of a base is a multiple of T*, or scores are incomplete.
    """
    names = inputs.names
    scores = sc.domain_scores(inputs.results)
    bases = sc.bases(scores)
    drawn = pd.concat([lines.lines(scores, base, inputs.pool, "figure_1", names) for base in bases], ignore_index=True)
    drawn = drawn[drawn["domain"] == sc.AVERAGE].reset_index(drop=True)
    looks = styles(sc.methods(drawn[drawn["series"] == "merged"], names), names)
    with drawing.settings():
        canvas = drawing.canvas(len(bases), 3, 2.2, lines.handles(drawn, looks))
        for panel, base in zip(canvas.panels, bases, strict=True):
            lines.draw(panel, drawn[drawn["base"] == base], looks)
            panel.set_title(base)
        for panel in canvas.leftmost:
            panel.set_ylabel("Average accuracy (%)")
        return drawing.Drawing(drawing.finish(canvas), drawn, lines.caption(_CAPTION, drawn))
