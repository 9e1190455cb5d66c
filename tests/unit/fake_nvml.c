/* A driver library for a machine without one: the calls of NVML that moorage.cluster.nvidia makes, told by FAKE_*.
 *
 * FAKE_GPUS: how many. FAKE_INIT: what nvmlInit returns. FAKE_LOST: index of a GPU that is lost.
 * FAKE_MIG: index of a GPU in MIG mode, with two instances. FAKE_UNIFIED: memory is not reported.
 * FAKE_NAME, FAKE_DRIVER, FAKE_CUDA: of every GPU, of the driver, and the newest CUDA it serves, such as 12040.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
typedef struct { unsigned long long total, free, used; } memory_t;

static int number(const char *name, int absent) {
    const char *text = getenv(name);
    return text ? atoi(text) : absent;
}
static const char *text(const char *name, const char *absent) { return getenv(name) ? getenv(name) : absent; }
/* A handle is index + 1 for a GPU, and 100 * (index + 1) + place + 1 for an instance of it. */
static int gpu_of(void *handle) { long h = (long)handle; return (int)(h < 100 ? h : h / 100) - 1; }
static int place_of(void *handle) { long h = (long)handle; return h < 100 ? -1 : (int)(h % 100) - 1; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return number("FAKE_INIT", OK); }
int nvmlInit_v2(void) { return number("FAKE_INIT", OK); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "GPU is lost"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    snprintf(out, size, "%s", text("FAKE_DRIVER", "580.65.06"));
    return OK;
}
int nvmlSystemGetCudaDriverVersion(int *out) { *out = number("FAKE_CUDA", 13000); return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = (unsigned)number("FAKE_GPUS", 0); return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    if ((int)index == number("FAKE_LOST", -1)) return GPU_IS_LOST;
    *out = (void *)(long)(index + 1);
    return OK;
}
int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    if (place_of(handle) < 0) snprintf(out, size, "GPU-%08d-aaaa", gpu_of(handle));
    else snprintf(out, size, "MIG-%08d-%04d", gpu_of(handle), place_of(handle));
    return OK;
}
int nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    (void)handle;
    snprintf(out, size, "%s", text("FAKE_NAME", "NVIDIA A100-SXM4-40GB"));
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *out) {
    if (getenv("FAKE_UNIFIED")) return NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    out->total = (place_of(handle) < 0 ? 40ULL : 20ULL) << 30;
    return OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    if (!getenv("FAKE_MIG")) return NOT_SUPPORTED;
    *current = *pending = gpu_of(handle) == number("FAKE_MIG", -1);
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *out) { (void)handle; *out = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **out) {
    if (index != 1 && index != 4) return NOT_FOUND;
    *out = (void *)(long)(100 * (gpu_of(handle) + 1) + index + 1);
    return OK;
}
