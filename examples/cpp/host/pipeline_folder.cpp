#include "pipeline_folder.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "files.h"

namespace svdq {
namespace {

constexpr char const* kAgain = "Build it again: svdq-trt build --pipeline.";
constexpr char const* kIndex = "model_index.json";

bool is_folder_name(std::string const& name) {
    auto const word = [](unsigned char c) { return std::isalnum(c) || c == '_'; };
    return name == "." || (!name.empty() && std::all_of(name.begin(), name.end(), word));
}

bool is_inside(std::string const& name) {
    std::filesystem::path const path(name);
    bool const up = std::find(path.begin(), path.end(), "..") != path.end();
    return !up && path.is_relative() && path.has_filename() && name.find('\0') == std::string::npos;
}

// The digest of model.onnx.data; empty where all weights are in model.onnx.
std::string data_digest(Json const& onnx, std::string const& where) {
    Json::object_t const data = member_or<Json::object_t>(onnx, "data", where, {});
    return data.empty() ? "" : member_as<std::string>(data, "sha256", where);
}

}  // namespace

PipelineFolder::PipelineFolder(std::string const& path) : path_(path), where_(path + "/pipeline.json") {
    if (!std::filesystem::exists(where_) && std::filesystem::exists(path + "/manifest.json")) {
        throw Error(path, "an engine without pipeline.json", "the engines of a whole pipeline",
                    "Build it with --pipeline.");
    }
    Json const data = read_object(where_, "a pipeline of engines");
    if (member_or<int64_t>(data, "version", where_, 0) != 1) throw Error(where_, "another version", "1", kAgain);
    class_name_ = member_as<std::string>(data, "pipeline", where_);
    for (auto const& [component, entry] : member_as<Json::object_t>(data, "engines", where_)) {
        read_engine(component, entry);
    }
    for (Json const& entry : member_as<Json::array_t>(data, "files", where_)) read_file_entry(entry);
    index_ = object(kIndex);
    auto const named = member_as<std::string>(index_, "_class_name", file(kIndex));
    if (named != class_name_) throw Error(where_, class_name_, named + ", as " + kIndex + " says");
}

void PipelineFolder::read_engine(std::string const& component, Json const& entry) {
    auto const name = member_as<std::string>(entry, "folder", where_);
    if (!is_folder_name(name)) throw Error(where_ + ": engines", "folder '" + name.substr(0, 80) + "'", "a name");
    std::string const folder = name == "." ? path_ : path_ + "/" + name;
    Manifest manifest = read_manifest(folder);
    Json const& onnx = member(manifest.data, "onnx", manifest.path);
    bool const same =
        member_as<std::string>(onnx, "sha256", manifest.path) == member_as<std::string>(entry, "onnx", where_) &&
        data_digest(onnx, manifest.path) == member_as<std::string>(entry, "data", where_);
    if (!same) throw Error(folder, "another engine than pipeline.json's", "its " + component, kAgain);
    engines_.emplace(component, Engine{name, std::move(manifest)});
}

void PipelineFolder::read_file_entry(Json const& entry) {
    auto const name = member_as<std::string>(entry, "file", where_);
    if (!is_inside(name)) throw Error(where_ + ": files", "'" + name.substr(0, 80) + "'", "a path in the folder");
    check_file(path_ + "/" + name, member_as<int64_t>(entry, "bytes", where_),
               member_as<std::string>(entry, "sha256", where_), kAgain);
    files_.insert(name);
}

std::string PipelineFolder::class_of(std::string const& component) const {
    auto const found = index_.find(component);
    bool const pair = found != index_.end() && found->is_array() && found->size() == 2 && (*found)[1].is_string();
    return pair ? (*found)[1].get<std::string>() : "";
}

void PipelineFolder::require_engines(std::map<std::string, std::string> const& want) const {
    std::map<std::string, std::string> got;
    std::string names, wanted;
    for (auto const& [component, engine] : engines_) {
        got[component] = engine.folder;
        names += " " + component;
    }
    for (auto const& one : want) wanted += " " + one.first;
    if (got != want)
        throw Error(where_, "a " + class_name_ + " of" + names, "one of" + wanted + ", each in its folder");
}

std::set<std::string> PipelineFolder::components() const {
    std::set<std::string> found;
    for (auto const& one : engines_) found.insert(one.first);
    return found;
}

std::string PipelineFolder::engine_path(std::string const& component) const {
    std::string const& folder = engines_.at(component).folder;
    return folder == "." ? path_ : path_ + "/" + folder;
}

Manifest const& PipelineFolder::manifest(std::string const& component) const { return engines_.at(component).manifest; }

std::string PipelineFolder::file(std::string const& name) const {
    if (!has(name)) throw Error(where_ + ": files", "no " + name, "it", kAgain);
    return path_ + "/" + name;
}

Json PipelineFolder::object(std::string const& name) const { return read_object(file(name), "a JSON file"); }

}  // namespace svdq
