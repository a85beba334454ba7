"""What a run learns to do: its data, its evaluation and its sample. `base` is what a run asks of a task."""
