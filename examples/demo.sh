#!/usr/bin/env bash
# From labels to a scorer, and from raw conversations to subsets, on the sample corpus; no network. Writes to build/demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sample=examples/sample
out=build/demo
rm -rf "$out"

ee() {
    printf '\n$ ee-cli %s\n\n' "$*"
    ee-cli "$@"
}

ee distill --dialogues "$sample/dialogues.jsonl" --dialogues "$sample/raw.jsonl" --labels "$sample/labels.jsonl" -o "$out/scorer"
ee filter --scorer "$out/scorer" "$sample/raw.jsonl" -o "$out/subsets"

# Rows are long: what the filter added stands at their end.
for subset in sensibility rationality discarded rejected; do
    first="$out/subsets/$subset/part-00000.jsonl"
    if [ -f "$first" ]; then
        printf '\nend of the first row of %s:\n' "$first"
        head -n 1 "$first" | grep -oE '.{1,400}$'
    fi
done
printf '\nThe scorer is in %s: load it with Scorer.load("%s"), or filter your own files with it.\n' "$out/scorer" "$out/scorer"
printf 'Its figures come from few, written examples: they show the way, not what a scorer of real labels can do.\n'
