// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace q2export::runtime
{

class Sha256
{
public:
    void update(void const* data, size_t size);

    // Of all that came: 64 lower-case hexadecimal digits. Nothing may come after it.
    std::string hex();

private:
    std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
        0x5be0cd19};
    std::array<unsigned char, 64> block_{};
    uint64_t bytes_ = 0;
};

} // namespace q2export::runtime
