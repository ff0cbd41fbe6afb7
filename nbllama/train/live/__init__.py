"""What a run with `--live` measures, answers, and gives to its page; no bit of the run changes."""
