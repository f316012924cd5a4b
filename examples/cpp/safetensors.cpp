#include "safetensors.h"

#include <fstream>
#include <limits>

#include "error.h"
#include "json.h"

namespace svdq {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit

std::string quoted(std::string const& text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + '"';
}

}  // namespace

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
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw Error(path, "cannot be read", "a .safetensors file");
    uint64_t const total = static_cast<uint64_t>(file.tellg());
    file.seekg(0);
    unsigned char head[8] = {};
    file.read(reinterpret_cast<char*>(head), 8);
    uint64_t header = 0;
    for (int i = 7; i >= 0; --i) header = header << 8 | head[i];
    if (!file || header > kMaxHeader || header + 8 > total) throw Error(path, "no header", "a .safetensors file");
    std::string text(header, ' ');
    file.read(text.data(), static_cast<std::streamsize>(header));
    std::vector<char> bytes(total - 8 - header);
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file) throw Error(path, "truncated", "a whole .safetensors file");

    Tensors tensors;
    Json const parsed = Json::parse(text, path);
    for (auto const& [name, entry] : parsed.object()) {
        if (name == "__metadata__") continue;
        Tensor tensor;
        tensor.dtype = entry.at("dtype").string();
        for (Json const& size : entry.at("shape").array()) tensor.shape.push_back(size.integer());
        auto const& offsets = entry.at("data_offsets").array();
        if (offsets.size() != 2) throw Error(path, "data_offsets of " + name, "two numbers");
        int64_t const begin = offsets[0].integer(), end = offsets[1].integer();
        size_t const want = element_count(tensor.shape) * element_size(tensor.dtype);
        if (begin < 0 || end < begin || static_cast<uint64_t>(end) > bytes.size() ||
            static_cast<size_t>(end - begin) != want) {
            throw Error(path, "bytes of " + name + " do not match its shape", "a valid .safetensors file");
        }
        tensor.data.assign(bytes.begin() + begin, bytes.begin() + end);
        tensors.emplace(name, std::move(tensor));
    }
    return tensors;
}

void write_safetensors(std::string const& path, Tensors const& tensors) {
    std::string header = "{";
    size_t offset = 0;
    for (auto const& [name, tensor] : tensors) {
        if (offset || header.size() > 1) header += ",";
        header += quoted(name) + ":{\"dtype\":" + quoted(tensor.dtype) + ",\"shape\":[";
        for (size_t i = 0; i < tensor.shape.size(); ++i) header += (i ? "," : "") + std::to_string(tensor.shape[i]);
        header +=
            "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(offset + tensor.data.size()) + "]}";
        offset += tensor.data.size();
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::ofstream file(path, std::ios::binary);
    for (int i = 0; i < 8; ++i) file.put(static_cast<char>(header.size() >> (8 * i)));
    file << header;
    for (auto const& entry : tensors) {
        file.write(entry.second.data.data(), static_cast<std::streamsize>(entry.second.data.size()));
    }
    file.flush();
    if (!file) throw Error(path, "cannot be written", "a writable file");
}

}  // namespace svdq
