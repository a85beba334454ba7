"""The machine: chips and topologies, CPU threads, the cache of compiled programs."""
