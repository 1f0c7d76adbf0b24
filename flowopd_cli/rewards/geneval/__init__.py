"""GenEval: detector, colors and the rules of its verdicts."""
