// Drives the parts of examples/cpp that need no TensorRT:
//   parts_driver sha FILE | copy FROM.safetensors TO.safetensors | check MANIFEST INPUTS.safetensors | json FILE
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "inputs.h"
#include "json.h"
#include "safetensors.h"
#include "sha256.h"

namespace {

// The value again, keys in order: what Python's json.dumps(sort_keys=True, separators=(",", ":")) gives.
void print(svdq::Json const& value) {
    using Kind = svdq::Json::Kind;
    char const* comma = "";
    switch (value.kind()) {
        case Kind::kNull: std::cout << "null"; break;
        case Kind::kBool: std::cout << (value.boolean() ? "true" : "false"); break;
        case Kind::kNumber: std::cout << value.integer(); break;
        case Kind::kString: std::cout << '"' << value.string() << '"'; break;
        case Kind::kArray:
            std::cout << '[';
            for (auto const& item : value.array()) std::cout << comma, print(item), comma = ",";
            std::cout << ']';
            break;
        case Kind::kObject:
            std::cout << '{';
            for (auto const& [key, item] : value.object()) {
                std::cout << comma << '"' << key << "\":";
                print(item);
                comma = ",";
            }
            std::cout << '}';
    }
}

svdq::Json parse(char const* path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return svdq::Json::parse(text.str(), path);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        std::string const what = argc > 2 ? argv[1] : "";
        if (what == "sha") {
            std::cout << svdq::sha256_of_file(argv[2]);
        } else if (what == "copy" && argc == 4) {
            svdq::write_safetensors(argv[3], svdq::read_safetensors(argv[2]));
        } else if (what == "check" && argc == 4) {
            svdq::check_inputs(svdq::read_inputs(parse(argv[2])), svdq::read_safetensors(argv[3]));
        } else {
            print(parse(argv[2]));
        }
    } catch (std::exception const& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
