#include "files.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <set>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include "contract.h"
#include "error.h"
#include "package/sha256.h"

namespace q2export::runtime
{
namespace
{

constexpr size_t kChunkBytes = 4 << 20;

[[noreturn]] void refuse(std::string const& path, int problem)
{
    throw PackageError(path + ": cannot be read: " + std::strerror(problem));
}

// An open regular file.
class File
{
public:
    explicit File(std::string const& path)
        : path_(path)
        // Not to wait for the writer of a named pipe.
        , descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK))
    {
        struct stat status{};
        if (descriptor_ < 0 || fstat(descriptor_, &status) != 0)
        {
            int const problem = errno;
            if (descriptor_ >= 0)
            {
                close(descriptor_);
            }
            refuse(path, problem);
        }
        if (!S_ISREG(status.st_mode))
        {
            close(descriptor_);
            throw PackageError(path + ": expected a regular file");
        }
        size_ = status.st_size;
    }

    ~File()
    {
        close(descriptor_);
    }

    File(File const&) = delete;
    File& operator=(File const&) = delete;

    int64_t size() const
    {
        return size_;
    }

    int descriptor() const
    {
        return descriptor_;
    }

    // Read up to `count` bytes at an offset; fewer at the end of the file.
    size_t read_at(void* data, size_t count, int64_t offset) const
    {
        size_t done = 0;
        while (done < count)
        {
            ssize_t const got = pread(descriptor_, static_cast<char*>(data) + done, count - done, offset + static_cast<int64_t>(done));
            if (got < 0 && errno != EINTR)
            {
                refuse(path_, errno);
            }
            if (got == 0)
            {
                break;
            }
            done += got > 0 ? static_cast<size_t>(got) : 0;
        }
        return done;
    }

private:
    std::string path_;
    int descriptor_;
    int64_t size_ = 0;
};

} // namespace

MappedFile::MappedFile(std::string const& path)
{
    File const file(path);
    size_ = static_cast<size_t>(file.size());
    if (size_ == 0)
    {
        return;
    }
    void* const data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
    if (data == MAP_FAILED)
    {
        refuse(path, errno);
    }
    data_ = static_cast<unsigned char const*>(data);
}

MappedFile::~MappedFile()
{
    if (data_ != nullptr)
    {
        munmap(const_cast<unsigned char*>(data_), size_);
    }
}

std::string read_text(std::string const& path, int64_t limit)
{
    File const file(path);
    if (file.size() > limit)
    {
        throw PackageError(path + ": " + std::to_string(file.size()) + " bytes, expected at most " + std::to_string(limit)
            + "; is this the right file?");
    }
    std::string text(static_cast<size_t>(file.size()), '\0');
    text.resize(file.read_at(text.data(), text.size(), 0));
    return text;
}

std::string hash_file(std::string const& path)
{
    File const file(path);
    std::vector<char> chunk(kChunkBytes);
    Sha256 digest;
    int64_t offset = 0;
    while (size_t const count = file.read_at(chunk.data(), chunk.size(), offset))
    {
        digest.update(chunk.data(), count);
        offset += static_cast<int64_t>(count);
    }
    return digest.hex();
}

std::string fingerprint_file(std::string const& path)
{
    File const file(path);
    Sha256 digest;
    unsigned char size[8];
    for (int i = 0; i < 8; ++i)
    {
        size[i] = static_cast<unsigned char>(static_cast<uint64_t>(file.size()) >> (8 * i));
    }
    digest.update(size, sizeof(size));
    int64_t const room = file.size() > kSampleBytes ? file.size() - kSampleBytes : 0;
    std::set<int64_t> offsets; // the same ones of a small file count once
    for (int64_t i = 0; i < kSampleCount; ++i)
    {
        auto const product = static_cast<unsigned __int128>(room) * static_cast<uint64_t>(i);
        offsets.insert(static_cast<int64_t>(product / (kSampleCount - 1)));
    }
    char block[kSampleBytes];
    for (int64_t const offset : offsets)
    {
        digest.update(block, file.read_at(block, sizeof(block), offset));
    }
    return digest.hex();
}

std::string real_path(std::string const& path)
{
    std::unique_ptr<char, decltype(&std::free)> const real(realpath(path.c_str(), nullptr), &std::free);
    return real ? real.get() : "";
}

bool exists(std::string const& path)
{
    struct stat status{};
    return lstat(path.c_str(), &status) == 0;
}

} // namespace q2export::runtime
