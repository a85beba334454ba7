"""Run directories: what lies where (`layout`), and their mirror in a bucket (`mirror`)."""
