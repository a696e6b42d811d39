"""English to shell commands: a grammar of intents (YAML), the pairs it generates, and the marking of commands.

grammar/*.yaml --> grammar.py (intents, slots) --> pairs.py (training and held-out pairs)
"""
