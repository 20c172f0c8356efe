// Runs CUDA C++ kernels on the CPU, for tests only: g++ (C++20, x86-64 Linux) compiles an unchanged .cu file after this header.
//
// What it models
//   - Every thread of a block is a fiber on the one OS thread; blocks run one after another. machine.h
//   - A warp collective (shuffle, vote, mma, ldmatrix) is done once for the whole warp by the last lane to arrive, so results cannot
//     depend on the order in which lanes run. A kernel with all its barriers gives the same bits under every thread order (seed). warp.h
//   - Shared memory is NaN before each block, dynamic shared memory ends at an unreadable page. memory.h
//   - cp.async is lazy: the destination is NaN until the thread has waited for the copy's group, or somebody for its mbarrier.
//     asynchronous.h
//   - wgmma is lazy too: descriptors are decoded as the PTX manual says, and the product is done when it is waited for; what it reads in
//     shared memory must have come by cp.async, with a fence.proxy.async since. warpgroup.h
//   - A deadlock, a lane outside its mask, two collectives met by one warp, a misaligned copy, an access to memory that is not
//     there: each is an error that names block and thread.
// What it cannot model: time, bank conflicts, occupancy, the exact bits of tensor cores and of ex2.approx, weak memory order (a build
// under -fsanitize=thread finds missing barriers within a block), tensor maps, clusters, waiting for another block, graphs.
//
// Rules for kernels (kernels_cuda/src): inline PTX only in ptx.cuh and hopper.cuh, which have a CPU branch for each function; __shared__
// arrays only in the body of an extern "C" __global__ function (so that they can be found and made NaN); dynamic shared memory through
// DYNAMIC_SHARED of common.cuh.
#pragma once
#define CUDA_ON_CPU 1

#include "emu/sanitizer.h"
#include "emu/vectors.h"

#include "emu/memory.h"

#include "emu/machine.h"

#include "emu/floats.h"
#include "emu/intrinsics.h"
#include "emu/warp.h"

#include "emu/asynchronous.h"
#include "emu/tensor_core.h"
#include "emu/warpgroup.h"
