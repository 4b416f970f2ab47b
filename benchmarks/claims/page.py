"""``docs/results.md`` from the JSON of ``paper.py``: tables, and verdicts computed by the rules of ``verdicts.py``."""

from collections.abc import Iterable, Sequence

from claims.pooling import DECIDING, METRICS, Metric
from claims.prose import CLAIMS, INTRODUCTION, KINDS, LIMITS, NOT_RUN, RULES, RUN
from claims.verdicts import LEVEL, SEEDS, finding, size, verdict


def render(result: dict) -> str:
    """The whole page; without a result it says so and gives no figure."""
    pooled = result.get("pooled")
    parts = [INTRODUCTION]
    if not result.get("seeds"):
        parts += [NOT_RUN, _design()]
    else:
        parts += [_run(result)] if pooled else [_run(result), "\n**No seed is evaluated yet: no claim is judged.**\n"]
    parts += [KINDS, _rules(pooled)]
    parts += [_claim(claim, result) for claim in CLAIMS] if pooled else []
    parts += [_all_figures(pooled)] if pooled else []
    return "".join([*parts, LIMITS])


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns are text and all others numbers."""
    marks = ["---" if index < left else "---:" for index in range(len(header))]
    return "\n" + "\n".join("| " + " | ".join(row) + " |" for row in [header, marks, *rows]) + "\n"


def _design() -> str:
    rows = [(f"({claim}) {title}", text) for claim, (title, text) in CLAIMS.items()]
    return table(("claim", "tested as"), rows, 2)


def _rules(pooled: dict | None) -> str:
    margins = table(("deciding figure", "better is", "margin"), [_margin(metric) for metric in DECIDING], 2)
    over = f"all {pooled['tests']} tests of this page" if pooled else "all tests of this page"
    return RULES.format(over=over, seeds=SEEDS, level=LEVEL) + margins


def _margin(metric: Metric) -> tuple[str, str, str]:
    return metric.label, "lower" if metric.better < 0 else "higher", f"{metric.margin:g}"


def _run(result: dict) -> str:
    plan, seeds = result["plan"], result["seeds"]
    numbers = ", ".join(str(one["seed"]) for one in seeds)
    made_up = "**A smoke run on a tiny model and made-up rows: no figure means anything.**\n\n" if plan["tiny"] else ""
    text = RUN.format(
        made_up=made_up, numbers=numbers, **{key: plan[key] for key in ("labels", "examples", "contexts")}
    )
    return text + _seeds(seeds) + _trainings(seeds) + _minutes(result)


def _seeds(seeds: Sequence[dict]) -> str:
    def shown(one: dict, name: str) -> str:
        figure = one.get("scorer", {}).get(name)
        return _interval(figure, 2) if figure else ""

    rows = []
    for one in seeds:
        scorer = [shown(one, f"spearman/{name}") for name in ("sensibility", "rationality")]
        pool = one["thresholds"].get("pool", {}).get("examples", "")
        mixture = one.get("mixture", {})
        router = f"{mixture['verdict']} ({mixture['rows']} rows: a wide margin)" if mixture else ""
        rows.append((str(one["seed"]), str(one.get("labels", "")), *scorer, str(pool), str(router)))
    scorer_header = ("scorer, on its own held-out labels: Spearman sensibility", "rationality")
    header = ("seed", "labels", *scorer_header, "examples of the pool", "router")
    return table(header, rows)


def _trainings(seeds: Sequence[dict]) -> str:
    rows = [
        (f"{one['seed']}", name, str(e["examples"]), str(e["steps"]), f"{e['base_val_nll']:.3f} → {e['val_nll']:.3f}")
        for one in seeds
        for name, e in one["experts"].items()
    ]
    header = ("seed", "expert", "examples", "steps", "nats a token, own held-out part")
    return table(header, rows, 2) if rows else ""


def _minutes(result: dict) -> str:
    names = ("scorer", "pool", "experts", "mixture", "answers", "evaluation")
    rows = []
    for title, costs in [
        *((str(one["seed"]), one["costs"]) for one in result["seeds"]),
        ("once", result["shared_costs"]),
    ]:
        spent = dict.fromkeys(names, 0.0)
        for job, cost in costs.items():
            stage = job.split("/")[0].split("-")[0]
            spent[stage] += cost["seconds"] / 60
        again = sum(cost["attempts"] > 1 for cost in costs.values())
        rows.append((title, *(f"{spent[name]:.1f}" for name in names), f"{sum(spent.values()):.1f}", str(again)))
    header = ("minutes, seed", *names, "together", "resumed jobs")
    note = "\nOf a job that was resumed, the minutes are those of its last attempt. *Once*: what all seeds share.\n"
    return f"\nOn {result['cores']} CPU cores:\n" + table(header, rows) + note


def _claim(claim: str, result: dict) -> str:
    title, text = CLAIMS[claim]
    comparisons = result["pooled"]["comparisons"]
    own = [one for one in comparisons if one["claim"] == claim]
    found = verdict(claim, comparisons)
    parts = [f"\n## ({claim}) {title}\n\n{text}\n\nVerdict: **{found.word}**. ({found.why}.)\n"]
    if claim == "b":
        parts.append(_overlaps(result["seeds"]))
    for system, baseline in dict.fromkeys((one["system"], one["baseline"]) for one in own):
        mine = [one for one in own if (one["system"], one["baseline"]) == (system, baseline)]
        parts.append(f"\n{system} less {baseline}:\n" + _differences(claim, mine, result["pooled"]["figures"]))
    return "".join(parts)


def _overlaps(seeds: Sequence[dict]) -> str:
    rows = [
        (
            str(one["seed"]),
            t,
            str(f["examples"]),
            f"{100 * f['share']:.1f} %",
            str(f["also_at_5"]),
            f"{f['jaccard']:.3f}",
        )
        for one in seeds
        for t, f in one["thresholds"].items()
        if t != "pool"
    ]
    header = ("seed", "T", "examples in sensibility", "of the pool", "of them also at T = 5", "Jaccard with T = 5")
    return table(header, rows, 2)


def _differences(claim: str, comparisons: Sequence[dict], figures: dict) -> str:
    labels = {metric.name: metric for metric in METRICS}
    rows = []
    for one in comparisons:
        metric = labels[one["metric"]]
        values = [_number(figures[name][metric.name]["value"]) for name in (one["system"], one["baseline"])]
        seeds = ", ".join(_number(value, True) for value in one["seeds"])
        p, word = "", ""
        if metric.margin is not None:
            p = f"{one['holm']:.3f}" if one["holm"] >= 0.0005 else "<0.001"
            word = (size if claim == "b" else finding)(one, metric)
        rows.append((metric.label, metric.kind, *values, _interval(one, 3, True), seeds, p, word))
    header = (
        "figure",
        "kind",
        comparisons[0]["system"],
        comparisons[0]["baseline"],
        "difference [95 %]",
        "each seed",
        "p (Holm)",
    )
    return table((*header, "shown"), rows, 2)


def _all_figures(pooled: dict) -> str:
    systems = list(pooled["figures"])
    rows = [
        (metric.label, *(_cell(pooled["figures"][name].get(metric.name)) for name in systems))
        for metric in METRICS
        if any(metric.name in pooled["figures"][name] for name in systems)
    ]
    seeds = ", ".join(map(str, pooled["seeds"]))
    text = f"{pooled['contexts']} contexts of {pooled['conversations']} conversations; mean over seeds {seeds}."
    return f"\n## All figures\n\n{text} *reference* is what people answered.\n" + table(("figure", *systems), rows)


def _cell(figure: dict | None) -> str:
    return "" if figure is None else _interval(figure, 3)


def _number(value: float, signed: bool = False, digits: int = 3) -> str:
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "−")


def _interval(figure: dict, digits: int, signed: bool = False) -> str:
    value, low, high = (_number(figure[key], signed, digits) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
