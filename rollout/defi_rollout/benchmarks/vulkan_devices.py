"""Which device Vulkan draws on: SAPIEN does not tell."""

import ctypes
import dataclasses

from defi_rollout import errors

_CPU = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
_VENDORS = {0x10DE: "NVIDIA", 0x10005: "Mesa", 0x1002: "AMD", 0x8086: "Intel"}


@dataclasses.dataclass(frozen=True)
class Device:
    """Name, vendor and whether it is the CPU."""

    name: str
    vendor: str
    is_cpu: bool


class _InstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


class _Properties(ctypes.Structure):
    """VkPhysicalDeviceProperties; limits and the like, unread, are the rest."""

    _fields_ = [
        ("api_version", ctypes.c_uint32),
        ("driver_version", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_uint64 * 256),
    ]


def first() -> Device:
    """Returns the first GPU or, where there is none, the CPU's driver.

    Raises:
        UserError: the Vulkan loader or a driver is missing.
    """
    fix = "install libvulkan1 and a driver, see python -m defi_rollout setup"
    with errors.UserError.instead_of(OSError, "no Vulkan", "libvulkan.so.1", fix):
        vulkan = ctypes.CDLL("libvulkan.so.1")
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    info = _InstanceInfo(type=1)  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
    status = vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance))
    if status:
        raise errors.UserError(f"Vulkan does not start (status {status})", "libvulkan.so.1", fix)
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    found = []
    for handle in handles:
        properties = _Properties()
        vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), ctypes.byref(properties))
        vendor = _VENDORS.get(properties.vendor, hex(properties.vendor))
        found.append(Device(properties.name.decode(), vendor, properties.type == _CPU))
    vulkan.vkDestroyInstance(instance, None)
    if not found:
        raise errors.UserError("Vulkan knows no device", "libvulkan.so.1", fix)
    return min(found, key=lambda device: device.is_cpu)
