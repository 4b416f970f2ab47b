"""The words of ``docs/results.md`` that do not depend on a result."""

CLAIMS = {
    "a": (
        "Sensibility data against all data, and against random data",
        "An expert of the sensibility subset alone (T = 5) answers better than one of all data, and than one of as many random "
        "examples. All data costs more steps; random data costs the same, and is what equal steps of all data would be.",
    ),
    "b": (
        "Thresholds 4 to 7",
        "Where the scores are cut between 4 and 7 hardly matters: the subsets overlap, and experts of them answer alike. Each "
        "expert is compared with that of T = 5.",
    ),
    "c": (
        "The mixture against each expert",
        "The mixture of the sensibility and the rationality expert answers better than either. It has seen what both have seen, "
        "and its router's training besides; `benchmarks/mixture.py` has the controls of the same size and steps.",
    ),
}
INTRODUCTION = """# The paper's three claims at a laptop's scale

Sun et al. 2024 (*Efficient-Empathy*, arXiv 2407.01937) tune LLaMA-3 and a Qwen chat model on GPUs. Here the whole chain,
`distill → filter → train-expert → train-moe → generate → evaluate`, is run on EmpatheticDialogues with SmolLM2-135M-Instruct
on a CPU, to see which of the claims show at that scale. `benchmarks/paper.py` writes this page from
`benchmarks/results/paper.json`: no figure and no verdict is typed by hand.
"""
NOT_RUN = """
**This has not been run at full size yet: there are no figures, and nothing is known about any claim.** What follows says what
will be measured and by which rules it will be judged; they were set beforehand.
"""
KINDS = """
## Which figures can be trusted for what

- **Self-fulfilling**: the scores of the scorer that chose the training data. That they rise says that the model learnt what
  the scorer likes. They are shown, and decide nothing.
- **Independent**: nothing that chose the data measures these. The *EPITOME judge* is distilled from labels by people on other
  texts (Reddit), though it is an encoder of the same kind; it knows three mechanisms of empathy, and their sum decides. *Nats
  a token* is how well a model foresees what people answered; these answers are of all kinds, so it favours training on all
  kinds, and it is also given apart for the answers that the paper's own judge puts in sensibility and for the others. *ROUGE,
  BLEU, F1* compare with the one answer that somebody gave, *Dist* counts different n-grams.
- **Form**: length and questions, which move all of the others.
"""
LIMITS = """
## What a laptop cannot settle

- **Scale.** LoRA on a model of 135M parameters with a small part of the corpus is not LLaMA-3 with all of it. A claim that
  fails here may hold there, and the other way round.
- **People.** Nobody read the answers. The EPITOME judge rates texts unlike those that it learnt from, and its own errors are
  in no interval; overlap with one reference says little about dialogue. The paper's human ratings are not repeated.
- **The judge.** The paper's scores come from an LLM; here a small encoder imitates them from a sample, with errors near the
  threshold. Subsets are those of the imitation.
- **Seeds.** Each seed draws labels, pool and training anew, but a few seeds tell little about how much seeds differ. The
  intervals take it that all trainings vary alike; where one recipe varies more than the others, its intervals are too narrow.
- **The recipe.** One rate, one rank, one pass for all systems, tuned for none. The paper trained its router on all data, and
  by an error of its script parts of the experts with it; here the router alone is trained, on the two subsets.
- *Not shown* is not *no difference*: with a few hundred contexts small differences stay unseen.

## To repeat it

    python benchmarks/paper.py --keep work/ --dry-run
    python benchmarks/paper.py --keep work/

with the numbers of examples and contexts that are told above (options `examples`, `contexts`). A killed run goes on when it is
started again. The data is not ours to pass on. The scripts look for it in `../shared/data/` beside the clone, as gzipped
JSONL, and say which file is missing: `empathetic_dialogues.train.jsonl.gz` and `.valid` (`id`, `turns`),
`ed_paper_scores.valid.jsonl.gz` (`id`, `conv_id`, `context`, `response`, `sensibility`, `rationality`; from the paper's
repository), `epitome.jsonl.gz` (`id`, `sp_id`, `seeker`, `response` and the three mechanisms).
"""
RULES = """
## The rules

Intervals are 95 % t intervals of the mean over seeds. Their variance is that over resampled conversations plus that between
seeds, divided by their number (with one seed they say nothing of how another training would differ). For differences, which
are paired on the same contexts, the spread between seeds is estimated from all trained systems together, with (seeds − 1) ×
(systems − 1) degrees of freedom. p-values come from the same distribution, corrected by Holm for {over}, which are those of
the deciding figures; all other figures stand beside them for the reader. Until one seed had been evaluated, the rule was to
resample three seeds with replacement; that shows two thirds of their variance and calls too much better or worse, so it was
replaced.

- **better / worse**: {seeds} seeds or more, the interval excludes 0, and the corrected p is {level} or less. A claim of being
  better *held* against a system if some deciding figure is better and none worse, *did not hold* if some is worse and none
  better; else one *cannot tell*.
- **small / large**, for (b): the whole interval lies within the margin; or it lies wholly outside, and the corrected p is
  {level} or less. The claim *held* for a threshold if all deciding figures are small, *did not hold* if one is large; else
  one *cannot tell*.
- A claim of several comparisons held if it held in all, and did not hold if it failed in one.
"""
RUN = """
## What was run

{made_up}Seeds: {numbers}. Each draws anew: {labels} of the paper's judge scores to a scorer; a pool of train
conversations whose sensibility subset (T = 5) has about {examples} examples to train on, rated once; one pass a training;
greedy answers to {contexts} validation contexts, the same for all, of conversations that gave no labels and that no recipe
was chosen on.
"""
