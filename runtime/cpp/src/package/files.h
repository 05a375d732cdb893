// Reading files that may be anything.
#pragma once

#include <cstdint>
#include <string>

namespace q2export::runtime
{

// A regular file, mapped for reading. Throws PackageError, naming the file.
class MappedFile
{
public:
    explicit MappedFile(std::string const& path);
    ~MappedFile();
    MappedFile(MappedFile const&) = delete;
    MappedFile& operator=(MappedFile const&) = delete;

    unsigned char const* data() const
    {
        return data_;
    }

    size_t size() const
    {
        return size_;
    }

private:
    unsigned char const* data_ = nullptr;
    size_t size_ = 0;
};

// The whole of a regular file of at most `limit` bytes. Throws PackageError, naming the file.
std::string read_text(std::string const& path, int64_t limit);

// SHA-256 of a whole file, in hexadecimal; and that over its size and samples of it (q2export/package/hashing.py).
// Throws PackageError.
std::string hash_file(std::string const& path);
std::string fingerprint_file(std::string const& path);

// The path with links followed; empty where it leads nowhere.
std::string real_path(std::string const& path);

bool exists(std::string const& path); // a link that leads nowhere does

} // namespace q2export::runtime
