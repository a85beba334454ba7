"""A cache of compiled programs in the user's cache directory, so that a command that is run again starts at once.

JAX reads and writes the entries. Its key has the program and the compiler, but neither the CPU's features nor how many
cores it may use, and an entry with a flipped bit may load. So each machine has a directory of its own, and each entry a
checksum: only entries that were written completely are read. Entries are machine code, so nobody else may write there.
"""

import atexit
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from zoo.util import atomic_write, cache_directory

MAX_BYTES = 2**30  # the oldest entries beyond it go
MIN_COMPILE_SECONDS = 0.1  # quicker ones are not worth a file
ENTRY, CHECKSUM = "-cache", ".sha256"


def enable() -> Path | None:
    """Lets this process write and read the cache; to be called before anything is compiled.

    Returns the directory; None where JAX has another one (JAX_COMPILATION_CACHE_DIR), must use none
    (JAX_ENABLE_COMPILATION_CACHE=false), or cannot write there, and then compiles as usual.
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
    # Sealed at each use, so that a process that is killed has sealed all but its last program.
    jax.monitoring.register_event_listener(lambda event, **_: event.endswith("use_cache") and seal(directory))
    atexit.register(seal, directory)
    return directory


def machine() -> str:
    """Returns a name for the compiler, the CPU with its features, and the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [platform.system(), platform.machine(), _processor(), str(cores), os.environ.get("NPROC", "")]
    return f"jaxlib-{version('jaxlib')}-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}"


def _processor() -> str:
    """Returns the CPU's model and features, as far as the system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    # The other lines change while the machine runs, as the clock rate does.
    fixed = ("model name", "model", "stepping", "flags", "features", "cpu part", "cpu implementer")
    return "\n".join(line for line in lines if line.split(":")[0].strip().lower() in fixed)


def drop_damaged(directory: Path) -> None:
    """Deletes entries without a checksum or with another one; their programs are compiled again."""
    for entry in directory.glob(f"*{ENTRY}"):
        seal_of = entry.with_name(entry.name + CHECKSUM)
        if not seal_of.exists() or seal_of.read_text(encoding="ascii", errors="replace") != _checksum(entry):
            entry.unlink(missing_ok=True)
            seal_of.unlink(missing_ok=True)


def drop_oldest(directory: Path, max_bytes: int) -> None:
    """Deletes the oldest entries until the rest take at most `max_bytes`."""
    entries = sorted(directory.glob(f"*{ENTRY}"), key=lambda entry: entry.stat().st_mtime)
    total = sum(entry.stat().st_size for entry in entries)
    for entry in entries:
        if total <= max_bytes:
            return
        total -= entry.stat().st_size
        entry.unlink(missing_ok=True)
        entry.with_name(entry.name + CHECKSUM).unlink(missing_ok=True)


def seal(directory: Path) -> None:
    """Writes the checksums of entries that have none yet."""
    try:
        for entry in directory.glob(f"*{ENTRY}"):
            seal_of = entry.with_name(entry.name + CHECKSUM)
            if not seal_of.exists():
                atomic_write(seal_of, _checksum(entry))
    except OSError:  # no room or no directory any more: an entry without a checksum is compiled again
        pass


def _checksum(entry: Path) -> str:
    return hashlib.sha256(entry.read_bytes()).hexdigest()
