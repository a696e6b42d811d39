"""Training: the loop that every stage goes through, and what belongs to it."""

STAGES = ("pretrain", "finetune", "prefer", "reinforce")
"""The stages that train, in order: keys of the recipe, verbs, and folders of a run."""
