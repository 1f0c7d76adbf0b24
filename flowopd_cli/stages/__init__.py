"""One file per command, one ``run(recipe, run, progress)`` each: wiring only."""
