"""The machine: known chips and topologies, the attached devices, CPU threads, the cache of compiled programs."""
