/* A stand-in for NVIDIA's libnvidia-ml.so.1: the entry points that vllm-autofit reads devices through, and no more.
 *
 * FAKE_NVML_DEVICES describes the machine, one device a line, the MIG instances under the GPU they are cut from:
 *
 *     gpu|UUID|total bytes|free bytes|state|name     state: plain, mig, no-memory, lost
 *     mig|UUID|total bytes|free bytes|number|name    number: among the instances of its GPU
 *
 * FAKE_NVML_FAILS names a function and the code that it returns, as in "nvmlShutdown=999".
 * FAKE_NVML_CAPABILITY is the compute capability of all devices, as in "12.1"; 9.0 without it.
 *
 * Codes and their reasons are those of NVIDIA's NVML API reference; the memory struct is nvmlMemory_t there.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15,
};
enum { MAX_DEVICES = 64, MAX_INSTANCES = 7, TEXT = 96 };

typedef struct device {
    char kind[8], uuid[TEXT], state[TEXT], name[TEXT];
    unsigned long long total, free;
    struct device *parent; /* the GPU of a MIG instance */
} device;

typedef struct {
    unsigned long long total, free, used;
} memory;

static device devices[MAX_DEVICES];
static int device_count;
static int times_open;

static void describe(void) {
    const char *line = getenv("FAKE_NVML_DEVICES");
    device *gpu = NULL;
    device_count = 0;
    while (line && *line && device_count < MAX_DEVICES) {
        device *d = &devices[device_count];
        if (sscanf(line, "%7[^|]|%95[^|]|%llu|%llu|%95[^|]|%95[^\n]", d->kind, d->uuid, &d->total, &d->free, d->state,
                   d->name) == 6) {
            if (!strcmp(d->kind, "gpu"))
                gpu = d;
            d->parent = d == gpu ? NULL : gpu;
            device_count++;
        }
        line = strchr(line, '\n');
        if (line)
            line++;
    }
}

/* What `function` must return before it does anything: the failure asked for, or the one of a closed library. */
static int trouble(const char *function) {
    const char *fails = getenv("FAKE_NVML_FAILS");
    size_t length = strlen(function);
    if (fails && !strncmp(fails, function, length) && fails[length] == '=')
        return atoi(fails + length + 1);
    return times_open > 0 ? SUCCESS : UNINITIALIZED;
}

#define CHECK() \
    do { \
        int code = trouble(__func__); \
        if (code != SUCCESS) \
            return code; \
    } while (0)

static int copy(char *to, unsigned int size, const char *text) {
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

/* For the tests alone: how many nvmlInit no nvmlShutdown has answered yet. */
int fake_nvml_times_open(void) { return times_open; }

int nvmlInitWithFlags(unsigned int flags) {
    int code = trouble(__func__);
    (void)flags;
    if (code != SUCCESS && code != UNINITIALIZED)
        return code;
    describe();
    times_open++;
    return SUCCESS;
}

/* PyTorch's own count of the devices opens the library by this name. */
int nvmlInit(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    CHECK();
    times_open--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) { return code == 28 ? "GPU not found" : "Fake error"; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    CHECK();
    *count = 0;
    for (int i = 0; i < device_count; i++)
        *count += !devices[i].parent;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device **found) {
    CHECK();
    for (int i = 0; i < device_count; i++) {
        if (devices[i].parent || index-- > 0)
            continue;
        if (!strcmp(devices[i].state, "lost"))
            return GPU_IS_LOST;
        *found = &devices[i];
        return SUCCESS;
    }
    return INVALID_ARGUMENT;
}

/* As NVML does, and other than CUDA: the whole UUID, not a beginning of it. */
int nvmlDeviceGetHandleByUUID(const char *uuid, device **found) {
    CHECK();
    for (int i = 0; i < device_count; i++)
        if (!strcmp(devices[i].uuid, uuid)) {
            *found = &devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(device *d, char *uuid, unsigned int size) {
    CHECK();
    return copy(uuid, size, d->uuid);
}

int nvmlDeviceGetName(device *d, char *name, unsigned int size) {
    CHECK();
    return copy(name, size, d->name);
}

int nvmlDeviceGetMemoryInfo(device *d, memory *m) {
    CHECK();
    if (!strcmp(d->state, "no-memory"))
        return NOT_SUPPORTED;
    *m = (memory){d->total, d->free, d->total - d->free};
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(device *d, int *major, int *minor) {
    CHECK();
    if (d->parent)
        return NOT_SUPPORTED;
    const char *capability = getenv("FAKE_NVML_CAPABILITY");
    *major = 9, *minor = 0;
    return !capability || sscanf(capability, "%d.%d", major, minor) == 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMigMode(device *d, unsigned int *current, unsigned int *pending) {
    CHECK();
    if (d->parent)
        return INVALID_ARGUMENT;
    if (!strcmp(d->state, "no-memory"))
        return NOT_SUPPORTED;
    *current = *pending = !strcmp(d->state, "mig");
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device *d, unsigned int *count) {
    CHECK();
    *count = strcmp(d->state, "mig") ? 0 : MAX_INSTANCES;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device *d, unsigned int index, device **found) {
    CHECK();
    if (index >= MAX_INSTANCES)
        return INVALID_ARGUMENT;
    for (int i = 0; i < device_count; i++)
        if (devices[i].parent == d && (unsigned int)atoi(devices[i].state) == index) {
            *found = &devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}
