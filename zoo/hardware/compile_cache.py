"""Compiled programs kept in the user's cache directory, so that a command run again starts at once.

JAX keeps the programs; this says where, and that only what was written whole is ever read. JAX's key knows the program
and the compiler but neither the CPU's features nor how many cores it may use, and an entry with a flipped bit may load:
hence a directory a machine, and a checksum an entry. Entries are machine code, so nobody else may write there.
"""

import atexit
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from zoo.util import cache_directory

MAX_BYTES = 2**30  # the oldest entries beyond it go
MIN_COMPILE_SECONDS = 0.1  # quicker ones are not worth a file
ENTRY, CHECKSUM = "-cache", ".sha256"


def enable() -> Path | None:
    """Let this process keep and reuse compiled programs; call it before anything is compiled.

    Returns the directory, or None where JAX has been told of another (JAX_COMPILATION_CACHE_DIR), has been told to use
    none (JAX_ENABLE_COMPILATION_CACHE=false), or cannot write there: it then compiles as ever.
    """
    import jax

    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    directory = cache_directory() / "compiled" / machine()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        drop_damaged(directory)
        drop_oldest(directory, MAX_BYTES)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    # A process that is killed has sealed all but its last program.
    jax.monitoring.register_event_listener(lambda event, **_: event.endswith("use_cache") and seal(directory))
    atexit.register(seal, directory)
    return directory


def machine() -> str:
    """A name for the compiler, the CPU with its features, and the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [platform.system(), platform.machine(), _processor(), str(cores), os.environ.get("NPROC", "")]
    return f"jaxlib-{version('jaxlib')}-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}"


def _processor() -> str:
    """The CPU's model and features, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    # Not its momentary clock.
    kept = ("model name", "model", "stepping", "flags", "features", "cpu part", "cpu implementer")
    return "\n".join(line for line in lines if line.split(":")[0].strip().lower() in kept)


def drop_damaged(directory: Path) -> None:
    """Delete entries that are not what was sealed, or were never sealed: they are compiled again."""
    for entry in directory.glob(f"*{ENTRY}"):
        seal_of = entry.with_name(entry.name + CHECKSUM)
        if not seal_of.exists() or seal_of.read_text(encoding="ascii", errors="replace") != _checksum(entry):
            entry.unlink(missing_ok=True)
            seal_of.unlink(missing_ok=True)


def drop_oldest(directory: Path, max_bytes: int) -> None:
    """Delete the entries written first until the rest fit."""
    entries = sorted(directory.glob(f"*{ENTRY}"), key=lambda entry: entry.stat().st_mtime)
    total = sum(entry.stat().st_size for entry in entries)
    for entry in entries:
        if total <= max_bytes:
            return
        total -= entry.stat().st_size
        entry.unlink(missing_ok=True)
        entry.with_name(entry.name + CHECKSUM).unlink(missing_ok=True)


def seal(directory: Path) -> None:
    """Write the checksums of entries that have none yet."""
    try:
        for entry in directory.glob(f"*{ENTRY}"):
            seal_of = entry.with_name(entry.name + CHECKSUM)
            if not seal_of.exists():
                seal_of.write_text(_checksum(entry), encoding="ascii")
    except OSError:  # full, gone or taken away: what has no checksum is compiled again
        pass


def _checksum(entry: Path) -> str:
    return hashlib.sha256(entry.read_bytes()).hexdigest()
