#include "safetensors.h"

#include <limits>

#include "error.h"
#include "files.h"
#include "json.h"

namespace svdq {
namespace {

constexpr size_t kSizeBytes = 8;  // of the header, little-endian

Tensor read_tensor(Json const& entry, std::string const& where, std::string const& bytes) {
    Tensor tensor{member_as<std::string>(entry, "dtype", where), {}, {}};
    for (Json const& size : member_as<Json::array_t>(entry, "shape", where)) {
        tensor.shape.push_back(value_as<int64_t>(size, where + ": shape"));
    }
    auto const offsets = member_as<Json::array_t>(entry, "data_offsets", where);
    if (offsets.size() != 2) throw Error(where, "data_offsets", "two numbers");
    auto const begin = value_as<uint64_t>(offsets[0], where), end = value_as<uint64_t>(offsets[1], where);
    size_t const want = element_count(tensor.shape) * element_size(tensor.dtype);
    if (end < begin || end > bytes.size() || end - begin != want) {
        throw Error(where, "bytes that do not match its shape", "a valid .safetensors file");
    }
    tensor.data.assign(bytes.data() + begin, bytes.data() + end);
    return tensor;
}

}  // namespace

std::string text_of(std::vector<int64_t> const& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

size_t element_size(std::string const& dtype) {
    static std::map<std::string, size_t> const kSizes = {{"F64", 8},  {"I64", 8}, {"F32", 4}, {"I32", 4}, {"F16", 2},
                                                         {"BF16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}};
    auto const found = kSizes.find(dtype);
    if (found == kSizes.end()) throw Error("dtype", dtype, "one of F64 I64 F32 I32 F16 BF16 I8 U8 BOOL");
    return found->second;
}

size_t element_count(std::vector<int64_t> const& shape) {
    size_t count = 1;
    for (int64_t size : shape) {
        size_t const limit = std::numeric_limits<size_t>::max() / 16;
        if (size < 0 || (size > 0 && count > limit / static_cast<size_t>(size))) {
            throw Error("shape", "a size of " + std::to_string(size), "one that fits in memory");
        }
        count *= static_cast<size_t>(size);
    }
    return count;
}

Tensors read_safetensors(std::string const& path) {
    std::string file = read_file(path, "a .safetensors file");
    uint64_t header = 0;
    for (size_t i = kSizeBytes; i-- > 0 && file.size() >= kSizeBytes;) {
        header = header << 8 | static_cast<unsigned char>(file[i]);
    }
    if (file.size() < kSizeBytes || header > file.size() - kSizeBytes) {
        throw Error(path, "no header", "a .safetensors file");
    }
    Json const entries = parse_object(file.substr(kSizeBytes, header), path);
    file.erase(0, kSizeBytes + header);
    Tensors tensors;
    for (auto const& [name, entry] : entries.items()) {
        if (name != "__metadata__") tensors.emplace(name, read_tensor(entry, path + ": " + name, file));
    }
    return tensors;
}

void write_safetensors(std::string const& path, Tensors const& tensors) {
    Json entries = Json::object();
    size_t offset = 0;
    for (auto const& [name, tensor] : tensors) {
        size_t const end = offset + tensor.data.size();
        entries[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string header = entries.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::string file;
    for (size_t i = 0; i < kSizeBytes; ++i) file += static_cast<char>(header.size() >> (8 * i));
    file += header;
    for (auto const& entry : tensors) file.append(entry.second.data.data(), entry.second.data.size());
    write_file(path, file);
}

}  // namespace svdq
