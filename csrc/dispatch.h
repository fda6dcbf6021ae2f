// Which instruction set runs, chosen once for each process by what the machine has.
#pragma once

#include <string>

#include "job.h"

namespace memos {

// The best that the machine has, or the one that `wanted` names ("" for the best).
// Throws std::invalid_argument for a name that is unknown, or not this machine's.
const Kernels& choose_kernels(const std::string& wanted);

// `chosen`, or the widest below it whose vectors divide a block of `block_bytes` and fit into a head of `head_bytes`.
// Throws std::invalid_argument when none does.
const Kernels& narrow_enough(const Kernels& chosen, std::int64_t block_bytes, std::int64_t head_bytes);

}  // namespace memos
