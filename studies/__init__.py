"""Grids of experiments: a YAML file becomes a plan of runs, and the plan is run, submitted, resumed and reported."""
