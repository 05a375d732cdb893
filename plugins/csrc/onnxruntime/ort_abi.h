// The few parts of ONNX Runtime's C ABI that a library of custom ops needs, and runtime/cpp, which opens sessions. ONNX
// Runtime promises that the members of OrtApi keep their places and that new ones come last, so they are declared here
// by place; its own header, which no Python package carries, is taken instead where Q2EXPORT_ORT_INCLUDE is defined
// (option ORT_INCLUDE of the build). tests/plugins/cpu/test_onnxruntime_abi.py holds the places against that header and
// against the library at hand.
#pragma once

#if defined(Q2EXPORT_ORT_INCLUDE)

#include "onnxruntime_c_api.h"

#else

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtSession;
struct OrtEnv;
struct OrtIoBinding;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtTypeInfo;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtApi;
struct OrtCustomOp;

enum OrtErrorCode
{
    ORT_OK = 0,
    ORT_FAIL = 1,
    ORT_INVALID_ARGUMENT = 2,
};

enum ONNXTensorElementDataType
{
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
};

enum OrtLoggingLevel
{
    ORT_LOGGING_LEVEL_ERROR = 3,
};

enum GraphOptimizationLevel
{
    ORT_DISABLE_ALL = 0,
};

enum OrtAllocatorType
{
    OrtDeviceAllocator = 0,
};

enum OrtMemType
{
    OrtMemTypeDefault = 0,
};

enum OrtCustomOpInputOutputCharacteristic
{
    INPUT_OUTPUT_REQUIRED = 0,
    INPUT_OUTPUT_OPTIONAL = 1,
    INPUT_OUTPUT_VARIADIC = 2,
};

struct OrtApiBase
{
    OrtApi const* (*GetApi)(uint32_t version);
    char const* (*GetVersionString)();
};

// clang-format off
struct OrtApi
{
    OrtStatus* (*CreateStatus)(OrtErrorCode code, char const* message);                                          // 0
    OrtErrorCode (*GetErrorCode)(OrtStatus const* status);                                                       // 1
    char const* (*GetErrorMessage)(OrtStatus const* status);                                                     // 2
    OrtStatus* (*CreateEnv)(OrtLoggingLevel level, char const* name, OrtEnv** out);                              // 3
    void* before_7[3];
    OrtStatus* (*CreateSession)(OrtEnv const* env, char const* path, OrtSessionOptions const* options,
        OrtSession** out);                                                                                       // 7
    void* before_10[2];
    OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out);                                                 // 10
    void* before_22[11];
    OrtStatus* (*SetSessionLogSeverityLevel)(OrtSessionOptions* options, int level);                             // 22
    OrtStatus* (*SetSessionGraphOptimizationLevel)(OrtSessionOptions* options, GraphOptimizationLevel level);    // 23
    OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions* options, int threads);                                 // 24
    void* before_26[1];
    OrtStatus* (*CreateCustomOpDomain)(char const* domain, OrtCustomOpDomain** out);                             // 26
    OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, OrtCustomOp const* op);                          // 27
    OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);                      // 28
    void* before_30[1];
    OrtStatus* (*SessionGetInputCount)(OrtSession const* session, size_t* out);                                  // 30
    OrtStatus* (*SessionGetOutputCount)(OrtSession const* session, size_t* out);                                 // 31
    void* before_33[1];
    OrtStatus* (*SessionGetInputTypeInfo)(OrtSession const* session, size_t index, OrtTypeInfo** out);           // 33
    OrtStatus* (*SessionGetOutputTypeInfo)(OrtSession const* session, size_t index, OrtTypeInfo** out);          // 34
    void* before_36[1];
    OrtStatus* (*SessionGetInputName)(OrtSession const* session, size_t index, OrtAllocator* allocator,
        char** out);                                                                                             // 36
    OrtStatus* (*SessionGetOutputName)(OrtSession const* session, size_t index, OrtAllocator* allocator,
        char** out);                                                                                             // 37
    void* before_49[11];
    OrtStatus* (*CreateTensorWithDataAsOrtValue)(OrtMemoryInfo const* memory, void* data, size_t bytes,
        int64_t const* dims, size_t count, ONNXTensorElementDataType type, OrtValue** out);                      // 49
    void* before_51[1];
    OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);                                             // 51
    void* before_55[3];
    OrtStatus* (*CastTypeInfoToTensorInfo)(OrtTypeInfo const* info, OrtTensorTypeAndShapeInfo const** out);      // 55
    void* before_60[4];
    OrtStatus* (*GetTensorElementType)(OrtTensorTypeAndShapeInfo const* info, ONNXTensorElementDataType* out);   // 60
    OrtStatus* (*GetDimensionsCount)(OrtTensorTypeAndShapeInfo const* info, size_t* out);                        // 61
    OrtStatus* (*GetDimensions)(OrtTensorTypeAndShapeInfo const* info, int64_t* dims, size_t count);             // 62
    void* before_65[2];
    OrtStatus* (*GetTensorTypeAndShape)(OrtValue const* value, OrtTensorTypeAndShapeInfo** out);                 // 65
    void* before_69[3];
    OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType allocator, OrtMemType type, OrtMemoryInfo** out);         // 69
    void* before_75[5];
    OrtStatus* (*AllocatorAlloc)(OrtAllocator* allocator, size_t size, void** out);                              // 75
    OrtStatus* (*AllocatorFree)(OrtAllocator* allocator, void* data);                                            // 76
    void* before_78[1];
    OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator** out);                                            // 78
    void* before_85[6];
    OrtStatus* (*KernelInfoGetAttribute_float)(OrtKernelInfo const* info, char const* name, float* out);         // 85
    OrtStatus* (*KernelInfoGetAttribute_int64)(OrtKernelInfo const* info, char const* name, int64_t* out);       // 86
    void* before_88[1];
    OrtStatus* (*KernelContext_GetInputCount)(OrtKernelContext const* context, size_t* out);                     // 88
    void* before_90[1];
    OrtStatus* (*KernelContext_GetInput)(OrtKernelContext const* context, size_t index, OrtValue const** out);   // 90
    OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, int64_t const* dims,
        size_t count, OrtValue** out);                                                                           // 91
    void* before_93[1];
    void (*ReleaseStatus)(OrtStatus* status);                                                                    // 93
    void (*ReleaseMemoryInfo)(OrtMemoryInfo* info);                                                              // 94
    void (*ReleaseSession)(OrtSession* session);                                                                 // 95
    void (*ReleaseValue)(OrtValue* value);                                                                       // 96
    void* before_98[1];
    void (*ReleaseTypeInfo)(OrtTypeInfo* info);                                                                  // 98
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);                                      // 99
    void (*ReleaseSessionOptions)(OrtSessionOptions* options);                                                   // 100
    void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);                                                    // 101
    void* before_130[28];
    OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions* options, char const* key, char const* value);         // 130
    void* before_132[1];
    void (*ReleaseAllocator)(OrtAllocator* allocator);                                                           // 132
    OrtStatus* (*RunWithBinding)(OrtSession* session, OrtRunOptions const* options,
        OrtIoBinding const* binding);                                                                            // 133
    OrtStatus* (*CreateIoBinding)(OrtSession* session, OrtIoBinding** out);                                      // 134
    void (*ReleaseIoBinding)(OrtIoBinding* binding);                                                             // 135
    OrtStatus* (*BindInput)(OrtIoBinding* binding, char const* name, OrtValue const* value);                     // 136
    OrtStatus* (*BindOutput)(OrtIoBinding* binding, char const* name, OrtValue const* value);                    // 137
    void* before_193[55];
    OrtStatus* (*KernelContext_GetGPUComputeStream)(OrtKernelContext const* context, void** out);                // 193
    OrtStatus* (*GetTensorMemoryInfo)(OrtValue const* value, OrtMemoryInfo const** out);                         // 194
    void* before_228[33];
    OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions* options, char const* path);                     // 228
    void* before_244[15];
    OrtStatus* (*KernelInfo_GetNodeName)(OrtKernelInfo const* info, char* out, size_t* size);                    // 244
    void* before_249[4];
    OrtStatus* (*KernelInfoGetConstantInput_tensor)(OrtKernelInfo const* info, size_t index, int* is_constant,
        OrtValue const** out);                                                                                   // 249
    void* before_253[3];
    OrtStatus* (*KernelContext_GetAllocator)(OrtKernelContext const* context, OrtMemoryInfo const* memory,
        OrtAllocator** out);                                                                                     // 253
    void* before_274[20];
    OrtStatus* (*KernelContext_ParallelFor)(OrtKernelContext const* context, void (*body)(void*, size_t),
        size_t total, size_t batches, void* data);                                                               // 274
};
// clang-format on

#define Q2EXPORT_AT(member, place)                                                                                     \
    static_assert(offsetof(OrtApi, member) == (place) * sizeof(void*), #member " is out of place")
Q2EXPORT_AT(CreateSession, 7);
Q2EXPORT_AT(CreateSessionOptions, 10);
Q2EXPORT_AT(SetSessionLogSeverityLevel, 22);
Q2EXPORT_AT(CreateCustomOpDomain, 26);
Q2EXPORT_AT(SessionGetInputCount, 30);
Q2EXPORT_AT(SessionGetInputTypeInfo, 33);
Q2EXPORT_AT(SessionGetInputName, 36);
Q2EXPORT_AT(CreateTensorWithDataAsOrtValue, 49);
Q2EXPORT_AT(GetTensorMutableData, 51);
Q2EXPORT_AT(CastTypeInfoToTensorInfo, 55);
Q2EXPORT_AT(GetTensorElementType, 60);
Q2EXPORT_AT(GetTensorTypeAndShape, 65);
Q2EXPORT_AT(CreateCpuMemoryInfo, 69);
Q2EXPORT_AT(AllocatorFree, 76);
Q2EXPORT_AT(GetAllocatorWithDefaultOptions, 78);
Q2EXPORT_AT(KernelInfoGetAttribute_float, 85);
Q2EXPORT_AT(KernelContext_GetInputCount, 88);
Q2EXPORT_AT(KernelContext_GetInput, 90);
Q2EXPORT_AT(ReleaseStatus, 93);
Q2EXPORT_AT(ReleaseTypeInfo, 98);
Q2EXPORT_AT(AddSessionConfigEntry, 130);
Q2EXPORT_AT(ReleaseAllocator, 132);
Q2EXPORT_AT(RunWithBinding, 133);
Q2EXPORT_AT(KernelContext_GetGPUComputeStream, 193);
Q2EXPORT_AT(RegisterCustomOpsLibrary_V2, 228);
Q2EXPORT_AT(KernelInfo_GetNodeName, 244);
Q2EXPORT_AT(KernelInfoGetConstantInput_tensor, 249);
Q2EXPORT_AT(KernelContext_GetAllocator, 253);
Q2EXPORT_AT(KernelContext_ParallelFor, 274);
#undef Q2EXPORT_AT

// One op: ONNX Runtime reads the members that its `version` had.
struct OrtCustomOp
{
    uint32_t version;
    void* (*CreateKernel)(OrtCustomOp const* op, OrtApi const* api, OrtKernelInfo const* info);
    char const* (*GetName)(OrtCustomOp const* op);
    char const* (*GetExecutionProviderType)(OrtCustomOp const* op);
    ONNXTensorElementDataType (*GetInputType)(OrtCustomOp const* op, size_t index);
    size_t (*GetInputTypeCount)(OrtCustomOp const* op);
    ONNXTensorElementDataType (*GetOutputType)(OrtCustomOp const* op, size_t index);
    size_t (*GetOutputTypeCount)(OrtCustomOp const* op);
    void (*KernelCompute)(void* kernel, OrtKernelContext* context);
    void (*KernelDestroy)(void* kernel);
    OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(OrtCustomOp const* op, size_t index);
    OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(OrtCustomOp const* op, size_t index);
    OrtMemType (*GetInputMemoryType)(OrtCustomOp const* op, size_t index);
    int (*GetVariadicInputMinArity)(OrtCustomOp const* op);
    int (*GetVariadicInputHomogeneity)(OrtCustomOp const* op);
    int (*GetVariadicOutputMinArity)(OrtCustomOp const* op);
    int (*GetVariadicOutputHomogeneity)(OrtCustomOp const* op);
    OrtStatus* (*CreateKernelV2)(OrtCustomOp const* op, OrtApi const* api, OrtKernelInfo const* info, void** kernel);
    OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
    OrtStatus* (*InferOutputShapeFn)(OrtCustomOp const* op, OrtShapeInferContext* context);
    int (*GetStartVersion)(OrtCustomOp const* op);
    int (*GetEndVersion)(OrtCustomOp const* op);
    size_t (*GetMayInplace)(int** inputs, int** outputs);
    void (*ReleaseMayInplace)(int* inputs, int* outputs);
    size_t (*GetAliasMap)(int** inputs, int** outputs);
    void (*ReleaseAliasMap)(int* inputs, int* outputs);
};
static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void*), "OrtCustomOp has 26 members");

#endif

namespace q2export::onnxruntime
{

// The version of the ABI that this library is written against: ONNX Runtime 1.18 and later have it.
constexpr uint32_t kOrtApiVersion = 18;

} // namespace q2export::onnxruntime
