// text_to_image: a prompt to a picture, from a folder of engines.
#include "host/text_to_image.h"
#include "engine_folder.h"
#include "session.h"

int main(int argc, char** argv) {
    return svdq::text_to_image(argc, argv, [](std::string const& folder, svdq::Options const& options) {
        return std::make_unique<svdq::Session>(svdq::open_folder(folder, options), options);
    });
}
