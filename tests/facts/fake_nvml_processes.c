/* The stand-in of fake_nvml.c, with processes on its devices, and a driver that may hang.
 *
 * FAKE_NVML_PROCESSES has one process a line: "UUID|pid|bytes"; bytes -1: not told.
 * FAKE_NVML_HANGS, set to anything: nvmlInit never comes back.
 *
 * The struct is nvmlProcessInfo_t of NVIDIA's NVML API reference (version 3 of the functions).
 */
#define nvmlInitWithFlags open_at_once
#include "fake_nvml.c"
#undef nvmlInitWithFlags
#include <unistd.h>

typedef struct {
    unsigned int pid;
    unsigned long long bytes;
    unsigned int gpu_instance, compute_instance;
} process;

int nvmlInitWithFlags(unsigned int flags) {
    while (getenv("FAKE_NVML_HANGS"))
        sleep(1);
    return open_at_once(flags);
}

int nvmlDeviceGetComputeRunningProcesses_v3(device *d, unsigned int *count, process *found) {
    const char *line = getenv("FAKE_NVML_PROCESSES");
    unsigned int room = *count;
    CHECK();
    *count = 0;
    while (line && *line) {
        char uuid[TEXT];
        unsigned int pid;
        long long bytes;
        if (sscanf(line, "%95[^|]|%u|%lld", uuid, &pid, &bytes) == 3 && !strcmp(uuid, d->uuid)) {
            if (*count < room)
                found[*count] = (process){pid, (unsigned long long)bytes, -1u, -1u};
            ++*count;
        }
        line = strchr(line, '\n');
        if (line)
            line++;
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

/* MIG instances have no graphics. */
int nvmlDeviceGetGraphicsRunningProcesses_v3(device *d, unsigned int *count, process *found) {
    CHECK();
    (void)found;
    *count = 0;
    return d->parent ? NOT_SUPPORTED : SUCCESS;
}
