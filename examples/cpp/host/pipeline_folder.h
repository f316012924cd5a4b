// A folder of engines that `svdq-trt build --pipeline` wrote: checked as svdq_trt/artifact/pipeline_file.py does.
#pragma once

#include <map>
#include <set>
#include <string>

#include "manifest.h"

namespace svdq {

class PipelineFolder {
public:
    // Reads pipeline.json, compares the engines' manifests with it and the other files with their digests. Throws Error.
    explicit PipelineFolder(std::string const& path);

    // Diffusers' class of the pipeline, and of a component; empty where it has none.
    std::string const& class_name() const { return class_name_; }
    std::string class_of(std::string const& component) const;
    // The pipeline's own settings: model_index.json.
    Json const& index() const { return index_; }

    // Throws Error unless the engines are exactly these: component and its engine's folder.
    void require_engines(std::map<std::string, std::string> const& want) const;
    std::set<std::string> components() const;  // that have an engine; an autoencoder's halves count alone
    std::string engine_path(std::string const& component) const;
    Manifest const& manifest(std::string const& component) const;

    // Files are those that pipeline.json lists: by their path in the folder, such as "tokenizer/vocab.json".
    bool has(std::string const& file) const { return files_.count(file) != 0; }
    // Where it is. Throws Error: not listed.
    std::string file(std::string const& name) const;
    Json object(std::string const& name) const;

private:
    struct Engine {
        std::string folder;
        Manifest manifest;
    };

    void read_engine(std::string const& component, Json const& entry);
    void read_file_entry(Json const& entry);

    std::string path_, where_, class_name_;
    std::map<std::string, Engine> engines_;
    std::set<std::string> files_;
    Json index_;
};

}  // namespace svdq
