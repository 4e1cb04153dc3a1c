// An ONNX Runtime that aborts its process on one picture.
//
// It is the real library, whose address comes from -DREAL, with one function of its table replaced:
// a run whose input, three planes of 224 x 224, is pure magenta at five places ends the process, as a
// bug in a kernel would. The layout of the table is fixed by ONNX Runtime's ABI: `Run` is its tenth entry and
// `GetTensorMutableData` its fifty-second.

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RUN = 9, GET_TENSOR_MUTABLE_DATA = 51, PLANE = 224 * 224 };

typedef struct {
    void **(*get_api)(uint32_t version);
    const char *(*version)(void);
} Base;

typedef void *(*Run)(void *session, const void *options, const char *const *input_names, const void *const *inputs,
                     size_t input_count, const char *const *output_names, size_t output_count, void **outputs);
typedef void *(*GetData)(void *value, void **data);

static Run real_run;
static GetData get_data;

static int is_magenta(const float *pixels) {
    for (int at = 0; at < PLANE; at += PLANE / 5) {
        float red = pixels[at], green = pixels[at + PLANE], blue = pixels[at + 2 * PLANE];
        if (red < 0.9f || green > -0.9f || blue < 0.9f) {
            return 0;
        }
    }
    return 1;
}

static void *run(void *session, const void *options, const char *const *input_names, const void *const *inputs,
                 size_t input_count, const char *const *output_names, size_t output_count, void **outputs) {
    void *data = NULL;
    if (input_count == 1 && get_data((void *)inputs[0], &data) == NULL && data != NULL && is_magenta(data)) {
        abort();
    }
    return real_run(session, options, input_names, inputs, input_count, output_names, output_count, outputs);
}

static void **poisoned(uint32_t version) {
    static Base *real;
    if (real == NULL) {
        void *library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
        real = library == NULL ? NULL : ((Base * (*)(void)) dlsym(library, "OrtGetApiBase"))();
    }
    void **api = real == NULL ? NULL : real->get_api(version);
    if (api != NULL && api[RUN] != (void *)run) {
        real_run = (Run)api[RUN];
        get_data = (GetData)api[GET_TENSOR_MUTABLE_DATA];
        uintptr_t page = (uintptr_t)&api[RUN] & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
        if (mprotect((void *)page, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE) != 0) {
            return NULL;
        }
        api[RUN] = (void *)run;
    }
    return api;
}

static const char *version(void) {
    void *library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    return ((Base * (*)(void)) dlsym(library, "OrtGetApiBase"))()->version();
}

__attribute__((visibility("default"))) const Base *OrtGetApiBase(void) {
    static const Base base = {poisoned, version};
    return &base;
}
