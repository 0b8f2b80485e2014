"""Speed, as ratios in one run: ours and a baseline in turn, on one server, with a correctness check beside them."""
