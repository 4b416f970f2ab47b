"""The tables of an evaluation as one HTML file: nothing is fetched, every text is escaped."""

from html import escape

from efficient_empathy.experts.answer_folders import Answer
from efficient_empathy.experts.evaluation import Evaluation
from efficient_empathy.experts.runs import REFERENCE
from efficient_empathy.experts.tables import Table, tables

_SHOWN = 8
_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "div{overflow-x:auto}table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .7rem;border-bottom:1px solid #8885;text-align:right;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}dt{font-weight:600}"
    "details{border-top:1px solid #8885;padding:.4rem 0}.caution{border-left:4px solid #c80;padding-left:.7rem}"
)


def page(evaluation: Evaluation) -> str:
    """The evaluation for a browser: what to be wary of, the tables, and some answers side by side."""
    cautions = "".join(f'<p class="caution">{escape(warning)}</p>' for warning in evaluation.warnings)
    head = (
        f"{evaluation.rows} answers in {evaluation.conversations} conversations; in brackets the 95 % interval, bootstrap over "
        f"conversations ({evaluation.options.resamples} resamples, seed {evaluation.options.seed}). Baseline: "
        f"{evaluation.baseline}."
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Evaluation</h1><p>{escape(head)}</p>{cautions}"
        f"{''.join(_table(table) for table in tables(evaluation))}{_samples(evaluation)}</body></html>\n"
    )


def _table(table: Table) -> str:
    title, (header, *rows) = table
    top = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><div><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _samples(evaluation: Evaluation) -> str:
    """A few rows, evenly spread: figures alone hide what answers are like."""
    answers = evaluation.folders[evaluation.baseline][0].answers
    count = min(_SHOWN, len(answers))
    rows = [index * len(answers) // count for index in range(count)]
    return "<h2>Some answers</h2>" + "".join(_sample(evaluation, row, answers[row]) for row in rows)


def _sample(evaluation: Evaluation, row: int, answer: Answer) -> str:
    turns = "".join(f"<p><b>{escape(turn.role)}</b>: {escape(turn.text)}</p>" for turn in answer.context)
    shown = [(run.system, run.texts[row]) for run in evaluation.runs if run.seed == 0]
    shown.sort(key=lambda item: item[0] != REFERENCE)
    answers = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text or '(empty)')}</dd>" for name, text in shown)
    return f"<details><summary>{escape(answer.id)}</summary>{turns}<dl>{answers}</dl></details>"
