"""The paper's three claims at a laptop's scale: distil, filter, experts, mixture, answers, evaluation, for each seed.

    python benchmarks/paper.py --keep work/ [--seeds 0,1,2] [--stages scorer,pool] [--examples 1400] [--contexts 500]
    python benchmarks/paper.py --keep work/ --dry-run       # the plan, with estimated minutes
    python benchmarks/paper.py --page                       # only pools the kept figures and writes docs/results.md anew
    python benchmarks/paper.py --keep work/ --small         # a tiny model and made-up rows: that it runs, no figures

(a) sensibility data against all data, and against random data of the same size; (b) thresholds 4 to 7; (c) the mixture
against each expert. Data: EmpatheticDialogues and the paper's judge scores of its validation part. Base: SmolLM2-135M-Instruct.

Every training is one pass over its data, so that sizes are those of the claim: all data has about 1.6 times the sensibility
subset's steps. Equal steps need no training of their own: the first so many steps of one pass over all data, in random order,
are a random subset of that size, which is what the random control is. The router takes as many steps as the sensibility expert.

Each job's folder in KEEP is whole or is done again, from its last checkpoint where it has any: a killed run goes on. The JSON and
the page are written as each seed ends, from the seeds in KEEP whatever stage they have reached, and from evaluated seeds of earlier
runs of the same plan, whose figures are kept in results/paper/: so one seed a day will do.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from claims.plan import STEP, Plan, Speed, Study
from claims.stages import STAGES, Job, Seed, finish, learn
from common import RESULTS, ROOT, read_result, write_result

from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import pretty_json, write_atomic

NAME, PAGE = "paper", ROOT / "docs" / "results.md"
VALUES = RESULTS / "paper"
"""Each evaluated seed's figures on all resamples: seeds may be run on different days, and machines."""
BAR = 100
"""Minutes that a seed may take."""


def study_of(options: argparse.Namespace) -> Study:
    """The plan that the options ask for; a smoke run brings its own."""
    thresholds = tuple(float(one) for one in options.thresholds.split(","))
    sizes = {"examples": options.examples, "contexts": options.contexts, "labels": options.labels}
    plan = Plan(**sizes, thresholds=thresholds, base=options.base, rows_at_once=options.rows_at_once)
    speed = Speed(options.tokens_per_second, options.answers_per_second)
    if options.small:
        import small

        base, backbone = small.language_model(options.keep / "tiny-lm"), small.encoder(options.keep / "tiny-encoder")
        plan = Plan(
            **{"examples": 60, "contexts": 40, "labels": 160, "thresholds": (5.0, 6.0), "resamples": 400},
            **{"base": str(base), "backbone": str(backbone), "rows_at_once": STEP, "new_tokens": 8, "tiny": True},
        )
        speed = Speed(20_000, 100, 20)
    return Study(plan, options.keep, options.batch_size, speed)


def show_plan(seeds: list[Seed], stages: list[str]) -> None:
    """What is left to do, and about how long it takes; jobs that seeds share are counted once."""
    counted: set[Path] = set()
    total = 0.0
    for seed in seeds:
        of_seed = training = 0.0
        for stage in stages:
            jobs = [job for job in seed.jobs(stage) if job.out not in counted]
            counted |= {job.out for job in jobs}
            left = [job for job in jobs if not job.done]
            minutes = sum(job.minutes for job in left)
            of_seed += minutes
            training += minutes if stage in ("experts", "mixture") else 0.0
            names = ", ".join(f"{job.name.split('/')[-1]} {job.minutes:.1f}" for job in left) or "nothing left to do"
            print(f"seed {seed.number}  {stage:10s} {minutes:6.1f} min  {names}")
        print(f"seed {seed.number}  together   {of_seed:6.1f} min")
        total += of_seed
        if of_seed > BAR > of_seed - training:
            fitting = seed.plan.examples * (BAR - of_seed + training) / training
            print(
                f"        {BAR} minutes would be enough for about --examples {fitting // 50 * 50:.0f} in a new folder"
            )
    rates = seeds[0].study.speed
    print(f"all        together   {total:6.1f} min, at {rates.tokens:.0f} tokens/s and {rates.answers:.1f} answers/s")


def run_seed(seed: Seed, stages: list[str]) -> None:
    """Do what is missing of a seed."""
    for stage in stages:
        seed.prepare(stage)
        left: list[Job] = [job for job in seed.jobs(stage) if not job.done]
        print(f"\nseed {seed.number}, {stage}: about {sum(job.minutes for job in left):.1f} minutes", flush=True)
        for job in left:
            print(f"  {job.name}", flush=True)
            finish(job, seed.study)
            learn(job, seed.study)
    spent = sum(facts.get("seconds", 0) for facts in seed.ledger.read().values()) / 60
    print(f"\nseed {seed.number}: {spent:.1f} minutes so far, in {seed.study.keep}")


def merge(study: Study, before: dict, stored: Path) -> dict:
    """All seeds: those that the folder holds, and of earlier results with the same plan those that it does not.

    Args:
        study: the plan and its folder.
        before: the result so far, or nothing.
        stored: where each evaluated seed's figures are kept.
    """
    from claims.pooling import facts, seed_values, write_values

    # Of a base that is a folder, the name alone: where it lies says nothing.
    plan = asdict(study.plan) | {name: Path(getattr(study.plan, name)).name for name in ("base", "backbone")}
    seeds = [Seed(study, int(path.name.removeprefix("seed-"))) for path in study.keep.glob("seed-*")]
    found = {seed.number: facts(seed) for seed in seeds}
    for seed in seeds:
        if found[seed.number]["evaluated"]:
            write_values(stored / f"seed-{seed.number}.npz", seed_values(seed))
    if before.get("plan") == json.loads(json.dumps(plan)):
        asked = {one["contexts_sha256"] for one in found.values() if "contexts_sha256" in one}
        earlier = {
            one["seed"]: one
            for one in before["seeds"]
            # Resamples are paired: seeds that were asked other contexts cannot be pooled.
            if (stored / f"seed-{one['seed']}.npz").is_file() and asked <= {one.get("contexts_sha256")}
        }
        # A seed that is begun anew takes the place of what it was once it is evaluated.
        found |= {number: one for number, one in earlier.items() if not found.get(number, {}).get("evaluated")}
    shared = {name: one for name, one in study.ledger.read().items() if "seconds" in one}
    ordered = [found[number] for number in sorted(found)]
    result = {"plan": plan, "cores": usable_cores(), "shared_costs": shared, "seeds": ordered}
    whole = [one["seed"] for one in ordered if one["evaluated"]]
    if whole:
        sizes = before.get("pooled", {})
        for seed in seeds:
            if seed.number in whole and (path := seed.folder / "evaluation" / "evaluation.json").is_file():
                evaluation = json.loads(path.read_text(encoding="utf-8"))
                sizes = {"contexts": evaluation["rows"], "conversations": evaluation["conversations"]}
        result["pooled"] = together(whole, sizes, study.plan.thresholds, stored)
    return result


def together(seeds: list[int], sizes: dict, thresholds: Sequence[float], stored: Path) -> dict:
    """What evaluated seeds say together, from their kept figures."""
    from claims.pooling import pooled, read_values

    values = [read_values(stored / f"seed-{number}.npz") for number in seeds]
    sizes = {name: sizes[name] for name in ("contexts", "conversations")}
    return {"seeds": seeds, **sizes, **pooled(values, thresholds, sizes["conversations"])}


def publish(study: Study) -> None:
    """Write JSON and page: into the project, or for a smoke run into its folder."""
    from claims.page import render

    if study.plan.tiny:
        result = merge(study, {}, study.keep / "values")
        write_atomic(study.keep / f"{NAME}.json", pretty_json(result))
        write_atomic(study.keep / "results.md", render(result).encode())
        return
    before = read_result(NAME)
    result = merge(study, before, VALUES)
    lost = {one["seed"] for one in before.get("seeds", [])} - {one["seed"] for one in result["seeds"]}
    if lost:
        print(
            f"of another plan or other contexts, or without their figures, and no longer in the results: seeds {sorted(lost)}"
        )
    write_result(NAME, result)
    write_atomic(PAGE, render(result).encode())


def parse() -> argparse.Namespace:
    """The command line; its defaults are those of the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder of the runs; give it again to go on")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of them, in this order")
    parser.add_argument("--examples", type=int, default=Plan.examples, help="of the sensibility subset at T = 5, about")
    parser.add_argument("--contexts", type=int, default=Plan.contexts)
    parser.add_argument("--labels", type=int, default=Plan.labels)
    parser.add_argument("--thresholds", default=",".join(f"{t:g}" for t in Plan.thresholds))
    parser.add_argument("--base", default=Plan.base)
    parser.add_argument("--rows-at-once", type=int, default=Plan.rows_at_once, choices=[1, 2, 4, 8, 16])
    parser.add_argument("--batch-size", type=int, default=Study.batch_size, help="contexts answered at once")
    parser.add_argument("--tokens-per-second", type=float, default=Speed.tokens, help="for the first estimates")
    parser.add_argument("--answers-per-second", type=float, default=Speed.answers)
    parser.add_argument("--dry-run", action="store_true", help="print the plan with estimated minutes, and stop")
    parser.add_argument("--page", action="store_true", help="only pool the kept figures and write docs/results.md anew")
    parser.add_argument("--small", action="store_true", help="a smoke run on a tiny model and made-up rows")
    options = parser.parse_args()
    if options.keep is None and not options.page:
        parser.error("--keep FOLDER is needed, or --page")
    return options


def main() -> None:
    options = parse()
    if options.page:
        from claims.page import render

        result = read_result(NAME)
        if before := result.get("pooled"):
            result["pooled"] = together(before["seeds"], before, result["plan"]["thresholds"], VALUES)
            write_result(NAME, result)
        write_atomic(PAGE, render(result).encode())
        return
    chosen = options.stages.split(",")
    if unknown := set(chosen) - set(STAGES):
        raise EmpathyError(f"there is no stage {', '.join(sorted(unknown))}; there are: {', '.join(STAGES)}.")
    stages = [stage for stage in STAGES if stage in chosen]
    study = study_of(options)
    if not options.dry_run:
        study.open()
    seeds = [Seed(study, int(number)) for number in ("0" if options.small else options.seeds).split(",")]
    for seed in seeds:
        for job in [job for stage in STAGES for job in seed.jobs(stage)]:
            learn(job, study)
    show_plan(seeds, stages)
    if options.dry_run:
        return
    for seed in seeds:
        run_seed(seed, stages)
        publish(study)


if __name__ == "__main__":
    try:
        main()
    except EmpathyError as error:
        sys.exit(f"Error: {error}")
