#include "graph_check.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <unordered_set>

#include "contract.h"
#include "error.h"
#include "package/files.h"
#include "package/protobuf.h"

namespace q2export::runtime
{
namespace
{

using protobuf::Damage;
using protobuf::Field;
using protobuf::Fields;
using protobuf::kVarint;
using protobuf::tag;
using View = std::string_view;

// Field numbers of onnx.proto (ONNX 1.23), by message.
namespace model
{
constexpr uint64_t kGraph = tag(7), kTraining = tag(20), kFunction = tag(25);
}
namespace graph
{
constexpr uint64_t kNode = tag(1), kInitializer = tag(5), kInput = tag(11), kOutput = tag(12), kValueInfo = tag(13),
                   kSparse = tag(15);
}
namespace node
{
constexpr uint64_t kOpType = tag(4), kAttribute = tag(5);
}
namespace attribute
{
constexpr uint64_t kName = tag(1), kInt = tag(3, kVarint), kTensor = tag(5), kGraph = tag(6), kInts = tag(8, kVarint),
                   kPackedInts = tag(8), kTensors = tag(10), kGraphs = tag(11), kSparse = tag(22), kSparses = tag(23);
}
namespace tensor
{
constexpr uint64_t kRawData = tag(9), kExternalData = tag(13);
}
namespace function
{
constexpr uint64_t kName = tag(1), kNode = tag(7), kDomain = tag(10), kOverload = tag(13);
}

constexpr size_t kRepeatedBytes = 256;    // of an attribute that other nodes may have as well
constexpr int64_t kMaxPlaceBytes = 127;   // of a location, offset or length: one byte says how many
constexpr uint64_t kMaxDecimal = 1ull << 62;

using Counts = std::map<std::string, int64_t, std::less<>>; // of nodes by op type

bool is_decimal(View text, uint64_t& value)
{
    value = 0;
    for (char const each : text)
    {
        if (each < '0' || each > '9')
        {
            return false;
        }
        value = value < kMaxDecimal / 10 ? value * 10 + static_cast<uint64_t>(each - '0') : kMaxDecimal;
    }
    return !text.empty();
}

// One pass over a file; every problem is a Damage that goes on after the file's name.
class GraphCheck
{
public:
    GraphCheck(View data, std::map<std::string, FileRecord> const& files)
        : data_(data)
        , files_(files)
    {
    }

    void run()
    {
        Counts nodes;
        Fields fields(data_);
        for (Field field; fields.next(field);)
        {
            switch (field.tag)
            {
            case model::kFunction: check_function(field.bytes); break;
            case model::kGraph: check_graph(field.bytes, nodes); break; // of several, protobuf makes one
            case model::kTraining: throw Damage{"holds training information"};
            default: break;
            }
        }
        if (nodes.empty())
        {
            throw Damage{"is no ONNX model: it holds no graph"};
        }
        auto const structure = static_cast<int64_t>(data_.size()) - value_bytes_;
        if (structure > kMaxStructureBytes)
        {
            throw Damage{"takes " + std::to_string(structure) + " bytes beside its weights, more than "
                + std::to_string(kMaxStructureBytes)};
        }
        std::set<std::string> within;
        int64_t const count = expanded(nodes, within);
        if (count > kMaxNodes)
        {
            throw Damage{"has " + std::to_string(count) + " nodes, its functions expanded, more than "
                + std::to_string(kMaxNodes)};
        }
    }

private:
    void check_graph(View message, Counts& nodes)
    {
        Fields fields(message);
        for (Field field; fields.next(field);)
        {
            switch (field.tag)
            {
            case graph::kNode: check_node(field.bytes, nodes); break;
            case graph::kInitializer: check_tensor(field.bytes); break;
            case graph::kSparse: throw Damage{"holds a sparse tensor"};
            case graph::kInput:
            case graph::kOutput:
            case graph::kValueInfo: break;
            default: continue;
            }
            if (++items_ > kMaxItems)
            {
                throw Damage{"holds more than " + std::to_string(kMaxItems) + " nodes and tensors"};
            }
        }
    }

    void check_function(View message)
    {
        View name, domain;
        Counts body;
        Fields fields(message);
        for (Field field; fields.next(field);)
        {
            switch (field.tag)
            {
            case function::kName: name = field.bytes; break;
            case function::kDomain: domain = field.bytes; break;
            case function::kNode: check_body_node(field.bytes, body); break;
            case function::kOverload:
                if (!field.bytes.empty())
                {
                    throw Damage{"holds an overloaded function"};
                }
                break;
            default: break;
            }
        }
        bool const ours = std::find(std::begin(kOps), std::end(kOps), name) != std::end(kOps);
        if (domain != kOpDomain || !ours || !bodies_.emplace(std::string(name), std::move(body)).second)
        {
            throw Damage{"holds the function " + shown(std::string(domain) + "." + std::string(name)) + ", which is not "
                + kToolName + "'s"};
        }
    }

    // How many nodes these become; no deeper than there are ops of ours.
    int64_t expanded(Counts const& nodes, std::set<std::string>& within) const
    {
        int64_t count = 0;
        for (auto const& [name, times] : nodes)
        {
            count += times;
        }
        for (auto const& [name, body] : bodies_)
        {
            auto const calls = nodes.find(name);
            if (calls == nodes.end())
            {
                continue;
            }
            if (!within.insert(name).second)
            {
                throw Damage{"holds the function " + name + ", which calls itself"};
            }
            int64_t const inside = expanded(body, within);
            within.erase(name);
            int64_t more = 0;
            if (__builtin_mul_overflow(calls->second, inside, &more) || __builtin_add_overflow(count, more, &count))
            {
                return INT64_MAX; // what calls this overflows as well
            }
        }
        return count;
    }

    void check_node(View message, Counts& nodes)
    {
        Fields fields(message);
        for (Field field; fields.next(field);)
        {
            if (field.tag == node::kOpType)
            {
                ++nodes[std::string(field.bytes)];
            }
            else if (field.tag == node::kAttribute)
            {
                bool const is_long = field.bytes.size() > kRepeatedBytes;
                if (is_long || harmless_.count(field.bytes) == 0)
                {
                    check_attribute(field.bytes, nullptr);
                }
                if (!is_long)
                {
                    harmless_.insert(field.bytes);
                }
            }
        }
    }

    // A node of a function, which may hold a subgraph: the loop of an op over its experts.
    void check_body_node(View message, Counts& body)
    {
        Fields fields(message);
        for (Field field; fields.next(field);)
        {
            if (field.tag == node::kOpType)
            {
                ++body[std::string(field.bytes)];
            }
            else if (field.tag == node::kAttribute)
            {
                check_attribute(field.bytes, &body);
            }
        }
    }

    // `body` counts the nodes of a subgraph, where there may be one.
    void check_attribute(View message, Counts* body)
    {
        View name;
        std::vector<uint64_t> numbers;
        bool has_subgraph = false;
        Fields fields(message);
        for (Field field; fields.next(field);)
        {
            switch (field.tag)
            {
            case attribute::kName: name = field.bytes; break;
            case attribute::kTensor:
            case attribute::kTensors: check_tensor(field.bytes); break;
            case attribute::kInt:
            case attribute::kInts: numbers.push_back(field.number); break;
            case attribute::kPackedInts:
                for (size_t position = 0; position < field.bytes.size();)
                {
                    numbers.push_back(protobuf::varint(field.bytes, position));
                }
                break;
            case attribute::kGraph:
                if (body != nullptr)
                {
                    check_graph(field.bytes, *body);
                    has_subgraph = true;
                    break;
                }
                [[fallthrough]];
            case attribute::kGraphs:
            case attribute::kSparse:
            case attribute::kSparses: throw Damage{"holds a node with a subgraph or a sparse tensor"};
            default: break;
            }
        }
        if (has_subgraph && name != "body")
        {
            throw Damage{"holds a node with a subgraph that is no loop's"};
        }
        check_numbers(name, numbers);
    }

    // Kernels put attributes into 32 bits, and divide by what is left of them; Constant makes tensors.
    static void check_numbers(View name, std::vector<uint64_t> const& numbers)
    {
        if (name == "value_int" || name == "value_ints")
        {
            return;
        }
        for (uint64_t const number : numbers)
        {
            auto const value = static_cast<int64_t>(number);
            if (value < INT32_MIN || value > INT32_MAX)
            {
                throw Damage{"holds a node with the attribute " + std::to_string(number) + ", which has more than 32 bits"};
            }
        }
    }

    void check_tensor(View message)
    {
        std::map<std::string, std::string> place;
        Fields fields(message);
        for (Field field; fields.next(field);)
        {
            if (field.tag == tensor::kRawData)
            {
                value_bytes_ += static_cast<int64_t>(field.bytes.size());
            }
            else if (field.tag == tensor::kExternalData)
            {
                read_entry(field.bytes, place);
            }
        }
        if (!place.empty())
        {
            check_weight(place);
        }
    }

    // An entry of external_data as every writer of protobuf writes it: key, then value, of at most 127 bytes.
    static void read_entry(View entry, std::map<std::string, std::string>& place)
    {
        for (View const key : {"location", "offset", "length"})
        {
            size_t const head = key.size() + 4;
            bool const is_key = entry.size() >= head && entry[0] == '\n' && entry[1] == static_cast<char>(key.size())
                && entry.substr(2, key.size()) == key && entry[head - 2] == '\x12';
            if (!is_key)
            {
                continue;
            }
            auto const size = static_cast<unsigned char>(entry[head - 1]);
            if (size > kMaxPlaceBytes || entry.size() - head != size)
            {
                break;
            }
            if (!place.emplace(key, entry.substr(head)).second)
            {
                throw Damage{"says twice where a weight is: " + std::string(key)};
            }
            return;
        }
        throw Damage{std::string("says where a weight is in a way that ") + kToolName + " does not write"};
    }

    void check_weight(std::map<std::string, std::string>& place) const
    {
        std::string const& location = place["location"];
        auto const file = files_.find(location);
        if (file == files_.end())
        {
            throw Damage{"reads weights from " + shown(location) + ", which " + kManifestName + " does not list"};
        }
        uint64_t offset = 0;
        uint64_t length = 0;
        bool const good = is_decimal(place["offset"], offset) && is_decimal(place["length"], length)
            && offset + length <= static_cast<uint64_t>(file->second.bytes);
        if (!good)
        {
            throw Damage{"reads weights at " + shown(place["offset"]) + ", of length " + shown(place["length"]) + ", from "
                + shown(location) + " of " + std::to_string(file->second.bytes) + " bytes"};
        }
    }

    View data_;
    std::map<std::string, FileRecord> const& files_;
    int64_t items_ = 0;
    int64_t value_bytes_ = 0;
    std::unordered_set<View> harmless_; // attributes seen: a few, in thousands of nodes
    std::map<std::string, Counts> bodies_;
};

} // namespace

void check_graph(
    std::string const& path, std::map<std::string, FileRecord> const& files, std::string const& rebuild_command)
{
    constexpr size_t kLargest = (size_t{1} << 31) - 1; // protobuf's own limit
    MappedFile const file(path);
    if (file.size() == 0 || file.size() > kLargest)
    {
        throw PackageError(path + ": expected an ONNX model, found a file of " + std::to_string(file.size()) + " bytes");
    }
    try
    {
        GraphCheck(View(reinterpret_cast<char const*>(file.data()), file.size()), files).run();
    }
    catch (Damage const& problem)
    {
        throw PackageError(path + ": " + problem.message + "; rebuild with: " + rebuild_command);
    }
}

} // namespace q2export::runtime
