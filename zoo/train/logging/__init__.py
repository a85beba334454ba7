"""What a run logs: metrics.jsonl (`log`), boards that show its numbers, and progress on the terminal."""
