"""What is compiled for: the devices of the ambient mesh (`jax.set_mesh`), or this process's first."""

import jax


def platform_and_kind() -> tuple[str, str]:
    """Platform (cpu, gpu, tpu) and kind of what is compiled for."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.devices()[0]
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return platform, device.device_kind


def on_one_cpu() -> bool:
    """Whether that is a single CPU device, so that no array is spread over several."""
    return platform_and_kind()[0] == "cpu" and jax.sharding.get_abstract_mesh().size <= 1
