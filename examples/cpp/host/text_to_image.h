// The program text_to_image, but for what runs its engines.
#pragma once

#include "runner.h"

namespace svdq {

// Parses a command line, makes the picture, and returns the exit code.
int text_to_image(int argc, char** argv, OpenEngine const& open);

}  // namespace svdq
