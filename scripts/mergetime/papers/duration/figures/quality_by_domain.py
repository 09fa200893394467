"""Figure 4: quality in every domain against training duration."""

import pandas as pd

from mergetime.papers.duration.names import SAFETY
from mergetime.publishing import scores as sc
from mergetime.publishing.figures import drawing, lines
from mergetime.publishing.figures.style import styles
from mergetime.publishing.inputs import Inputs

_CAPTION = "Scores of merged models in every domain, against the training duration of their experts."


def figure_4(inputs: Inputs) -> drawing.Drawing:
    """Like figure 1, for every domain and base: domains below each other, bases side by side (figure 4 of the paper).

    The domains of a single base are laid out in rows of three. Safety is the share of requests refused.
    Arguments, numbers and errors as in :func:`mergetime.papers.duration.figures.quality.figure_1`.
    """
    names = inputs.names
    scores = sc.domain_scores(inputs.results)
    bases = sc.bases(scores)
    drawn = pd.concat([lines.lines(scores, base, inputs.pool, "figure_4", names) for base in bases], ignore_index=True)
    drawn = drawn[drawn["domain"] != sc.AVERAGE].reset_index(drop=True)
    merged = drawn[drawn["series"] == "merged"]
    domains = sc.domains(merged, names)
    looks = styles(sc.methods(merged, names), names)
    is_single_base = len(bases) == 1
    with drawing.settings():
        cells = [(domain, base) for domain in domains for base in bases]
        columns = 3 if is_single_base else len(bases)
        canvas = drawing.canvas(len(cells), columns, 1.75, lines.handles(drawn, looks))
        for at, (panel, (domain, base)) in enumerate(zip(canvas.panels, cells, strict=True)):
            lines.draw(panel, drawn[(drawn["domain"] == domain) & (drawn["base"] == base)], looks)
            if at % columns == 0 or is_single_base:
                panel.set_ylabel(
                    _measure(domain) if is_single_base else f"{names.header(domain)}\n{_measure(domain).lower()}"
                )
            if is_single_base or at < columns:
                panel.set_title(names.header(domain) if is_single_base else base)
        return drawing.Drawing(drawing.finish(canvas), drawn, lines.caption(_CAPTION, drawn))


def _measure(domain: str) -> str:
    return "Refusal rate (%)" if domain == SAFETY else "Accuracy (%)"
