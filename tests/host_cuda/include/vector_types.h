// CUDA's vector types, with its alignments.
#pragma once

struct dim3
{
    unsigned x;
    unsigned y;
    unsigned z;

    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1)
        : x(x_)
        , y(y_)
        , z(z_)
    {
    }
};

#define HOST_CUDA_VECTORS(type, name)                                                                                  \
    struct alignas(2 * sizeof(type)) name##2                                                                           \
    {                                                                                                                  \
        type x, y;                                                                                                     \
    };                                                                                                                 \
    struct name##3                                                                                                     \
    {                                                                                                                  \
        type x, y, z;                                                                                                  \
    };                                                                                                                 \
    struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4                                                   \
    {                                                                                                                  \
        type x, y, z, w;                                                                                               \
    };                                                                                                                 \
    inline name##2 make_##name##2(type x, type y)                                                                      \
    {                                                                                                                  \
        return {x, y};                                                                                                 \
    }                                                                                                                  \
    inline name##3 make_##name##3(type x, type y, type z)                                                              \
    {                                                                                                                  \
        return {x, y, z};                                                                                              \
    }                                                                                                                  \
    inline name##4 make_##name##4(type x, type y, type z, type w)                                                      \
    {                                                                                                                  \
        return {x, y, z, w};                                                                                           \
    }

HOST_CUDA_VECTORS(signed char, char)
HOST_CUDA_VECTORS(unsigned char, uchar)
HOST_CUDA_VECTORS(short, short)
HOST_CUDA_VECTORS(unsigned short, ushort)
HOST_CUDA_VECTORS(int, int)
HOST_CUDA_VECTORS(unsigned, uint)
HOST_CUDA_VECTORS(long long, longlong)
HOST_CUDA_VECTORS(unsigned long long, ulonglong)
HOST_CUDA_VECTORS(float, float)
HOST_CUDA_VECTORS(double, double)
#undef HOST_CUDA_VECTORS
