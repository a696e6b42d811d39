"""Audits: checks that an evaluation is honest, and that what is trained can be what was meant.

    recipe, tokenizer, shards, held-out sets --stage.py--> before training: audit.json; an error stops it
    metrics, evaluation                      --stage.py--> after training: audit.json, report.md

    reading.py        one reading of the corpus for all that look at it
    leaks.py          held-out examples in what is trained on
    contamination.py  runs of 13 words of evaluation sets in it, and the score without such examples
    splits.py         validation against training
    tokens.py         special tokens, and text that cannot be written
    schedule.py       whether the schedule ended when training did

Each gives a Stamp (finding.py): passed, findings, or not run and why. One that looks at the corpus is an object that is
shown documents first; the others are functions.
"""
