"""What a run logs: metrics.jsonl (`log`), boards that mirror it, and progress on the terminal."""
