"""How the weights of `interaction-tiny` are made, from a seed to a checkpoint.

    python -m microturn.bench.training codec         train the codec, or go on with it
    python -m microturn.bench.training codec-eval    what a recogniser makes of decoded speech

LOG.md beside this file holds what was tried, with numbers.
"""
