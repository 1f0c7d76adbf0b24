"""GenEval 2: questions about a picture, and the probability that the judge gives to each right answer (Soft-TIFA)."""
