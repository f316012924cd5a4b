#include "files.h"

#include <openssl/evp.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <vector>

#include "error.h"

namespace svdq {
namespace {

std::string sha256_of(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    bool good = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
    std::vector<char> buffer(1 << 20);
    while (good && file) {
        file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
        good = EVP_DigestUpdate(context.get(), buffer.data(), static_cast<size_t>(file.gcount())) == 1;
    }
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (!good || !file.eof() || EVP_DigestFinal_ex(context.get(), digest, &size) != 1) {
        throw Error(path, "cannot be read to its end", "a file");
    }
    std::string hex;
    for (unsigned i = 0; i < size; ++i) {
        hex += "0123456789abcdef"[digest[i] >> 4];
        hex += "0123456789abcdef"[digest[i] & 15];
    }
    return hex;
}

}  // namespace

std::string read_file(std::string const& path, std::string const& want) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) throw Error(path, "cannot be read", want);
    return text.str();
}

void write_file(std::string const& path, std::string const& bytes) {
    std::string const part = path + ".part";
    std::error_code failed;
    {
        std::ofstream file(part, std::ios::binary);
        file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        file.flush();
        if (!file) throw Error(path, "cannot be written", "a writable file");
    }
    std::filesystem::rename(part, path, failed);
    if (failed) throw Error(path, failed.message(), "a writable file");
}

void check_digest(std::string const& path, std::string const& sha256, std::string const& fix) {
    if (sha256_of(path) != sha256) throw Error(path, "another SHA-256 than the manifest's", sha256, fix);
}

void check_file(std::string const& path, int64_t bytes, std::string const& sha256, std::string const& fix) {
    std::error_code failed;
    auto const size = std::filesystem::is_regular_file(path) ? std::filesystem::file_size(path, failed) : 0;
    if (failed || !std::filesystem::is_regular_file(path)) {
        throw Error(path, "missing", "the file that the manifest names", fix);
    }
    if (size != static_cast<std::uintmax_t>(bytes)) {
        throw Error(path, std::to_string(size) + " bytes", std::to_string(bytes) + " bytes", fix);
    }
    check_digest(path, sha256, fix);
}

}  // namespace svdq
