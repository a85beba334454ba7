"""The devices that a program is compiled for: those of the ambient mesh (`jax.set_mesh`), or the process's first."""

import jax


def platform_and_kind() -> tuple[str, str]:
    """Returns the platform ("cpu", "gpu", "tpu") and the kind ("TPU v5 lite") of the device that is compiled for."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.devices()[0]
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return platform, device.device_kind
