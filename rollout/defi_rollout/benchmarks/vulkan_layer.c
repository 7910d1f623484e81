/* A Vulkan layer that lets SAPIEN 2.2.2 start on a driver without VK_KHR_external_semaphore_fd.
 *
 * SAPIEN asks for that extension to share images with CUDA, which nothing here does. Mesa's CPU
 * driver (lavapipe) lacks it, so the device would be refused. The layer's manifest declares the
 * extension; the layer takes it out of the request on its way to the driver, and the wish to
 * export out of every semaphore. Whoever asks for a semaphore's file descriptor gets an error.
 *
 * Written for one instance and one device in a process, as SAPIEN has them.
 * Build: cc -shared -fPIC -O2 -o libvulkan_layer.so vulkan_layer.c (needs Vulkan's headers)
 */
#include <stdlib.h>
#include <string.h>

#include <vulkan/vulkan.h>
#include <vulkan/vk_layer.h>

static const char *const LEFT_OUT = VK_KHR_EXTERNAL_SEMAPHORE_FD_EXTENSION_NAME;

/* What stands below this layer: set when the instance and the device are made. */
static PFN_vkGetInstanceProcAddr next_instance_proc;
static PFN_vkGetDeviceProcAddr next_device_proc;
static VkInstance the_instance;

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *allocator,
                                                      VkInstance *instance) {
  VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
  while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO ||
                  link->function != VK_LAYER_LINK_INFO))
    link = (VkLayerInstanceCreateInfo *)link->pNext;
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  next_instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext; /* the next layer finds its own link first */
  PFN_vkCreateInstance create =
      (PFN_vkCreateInstance)next_instance_proc(VK_NULL_HANDLE, "vkCreateInstance");
  VkResult result = create(info, allocator, instance);
  if (result == VK_SUCCESS) the_instance = *instance;
  return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical,
                                                    const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *allocator,
                                                    VkDevice *device) {
  VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
  while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO ||
                  link->function != VK_LAYER_LINK_INFO))
    link = (VkLayerDeviceCreateInfo *)link->pNext;
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  PFN_vkGetInstanceProcAddr below = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  next_device_proc = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;

  const char **kept = calloc(info->enabledExtensionCount + 1, sizeof *kept);
  if (!kept) return VK_ERROR_OUT_OF_HOST_MEMORY;
  VkDeviceCreateInfo asked = *info;
  asked.enabledExtensionCount = 0;
  asked.ppEnabledExtensionNames = kept;
  for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
    if (strcmp(info->ppEnabledExtensionNames[i], LEFT_OUT))
      kept[asked.enabledExtensionCount++] = info->ppEnabledExtensionNames[i];
  PFN_vkCreateDevice create = (PFN_vkCreateDevice)below(the_instance, "vkCreateDevice");
  VkResult result = create(physical, &asked, allocator, device);
  free(kept);
  return result;
}

/* Keeps the semaphore's type (timeline or binary) and drops everything else of its chain. */
static VKAPI_ATTR VkResult VKAPI_CALL create_semaphore(VkDevice device,
                                                       const VkSemaphoreCreateInfo *info,
                                                       const VkAllocationCallbacks *allocator,
                                                       VkSemaphore *semaphore) {
  VkSemaphoreCreateInfo asked = *info;
  VkSemaphoreTypeCreateInfo type;
  asked.pNext = NULL;
  for (const VkBaseInStructure *part = info->pNext; part; part = part->pNext)
    if (part->sType == VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO) {
      type = *(const VkSemaphoreTypeCreateInfo *)part;
      type.pNext = NULL;
      asked.pNext = &type;
    }
  PFN_vkCreateSemaphore create =
      (PFN_vkCreateSemaphore)next_device_proc(device, "vkCreateSemaphore");
  return create(device, &asked, allocator, semaphore);
}

static VKAPI_ATTR VkResult VKAPI_CALL refuse_descriptor(VkDevice device, const void *info,
                                                        int *descriptor) {
  (void)device, (void)info, (void)descriptor;
  return VK_ERROR_FEATURE_NOT_PRESENT;
}

static PFN_vkVoidFunction of_device(const char *name) {
  if (!strcmp(name, "vkCreateSemaphore")) return (PFN_vkVoidFunction)create_semaphore;
  if (!strcmp(name, "vkGetSemaphoreFdKHR")) return (PFN_vkVoidFunction)refuse_descriptor;
  return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_proc(VkDevice device, const char *name) {
  if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)device_proc;
  PFN_vkVoidFunction own = of_device(name);
  return own ? own : next_device_proc(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instance_proc(VkInstance instance,
                                                              const char *name) {
  if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)instance_proc;
  if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)device_proc;
  if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)create_instance;
  if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)create_device;
  PFN_vkVoidFunction own = of_device(name);
  if (own) return own;
  return next_instance_proc ? next_instance_proc(instance, name) : NULL;
}

VK_LAYER_EXPORT VKAPI_ATTR VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *interface) {
  interface->loaderLayerInterfaceVersion = 2;
  interface->pfnGetInstanceProcAddr = instance_proc;
  interface->pfnGetDeviceProcAddr = device_proc;
  interface->pfnGetPhysicalDeviceProcAddr = NULL;
  return VK_SUCCESS;
}
