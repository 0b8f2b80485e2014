"""Performance as ratios: ours and a baseline measured alternately on one server, with correctness checks."""
