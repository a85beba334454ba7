"""Pictures of runs: `runs` draws them, `page` writes the HTML around them."""
