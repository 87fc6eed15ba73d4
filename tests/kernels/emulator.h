// Enough of CUDA C++ for a C++ compiler. The threads of a program take turns in one thread: each goes on until it has to wait.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <algorithm>
#include <vector>
using std::max;
using std::min;

struct Place {
    int x, y, z;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
static uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static Place threadIdx, blockIdx, gridDim, blockDim;

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

template <class T> T same_bits_(const void* from) {
    T out;
    memcpy(&out, from, sizeof out);
    return out;
}
static float __uint_as_float(uint32_t u) { return same_bits_<float>(&u); }
static float __int_as_float(int32_t i) { return same_bits_<float>(&i); }
static int32_t __float_as_int(float f) { return same_bits_<int32_t>(&f); }
static uint32_t __float_as_uint(float f) { return same_bits_<uint32_t>(&f); }
template <class T> T __ldg(const T* p) {
    if ((uintptr_t)p % sizeof(T)) __builtin_trap();  // as a GPU does
    return *p;
}

// Whose turn it is, and who has ended.
static const int MOST_ = 1024;
static ucontext_t main_, threads_[MOST_];
static bool ended_[MOST_];
static int idle_;  // turns in which nobody found what it waits for
static void next_() {
    const int from = threadIdx.x;
    do threadIdx.x = (threadIdx.x + 1) % blockDim.x;
    while (ended_[threadIdx.x] && threadIdx.x != from);
    if (ended_[threadIdx.x] || idle_ > 1000 * blockDim.x) setcontext(&main_);
    if (threadIdx.x != from) swapcontext(&threads_[from], &threads_[threadIdx.x]);
}
template <class Ready> static void wait_(Ready ready) {
    while (!ready()) idle_++, next_();
    idle_ = 0;
}
struct Meeting_ {
    int there = 0, turn = 0;
    void arrive(int of) {
        if (++there == of) there = 0, turn++;
    }
    void wait(int of) {
        const int now = turn;
        arrive(of);
        wait_([&] { return turn != now; });
    }
};
static Meeting_ program_, warps_[32];
static uint32_t told_[32][32][8];
static void __syncthreads() { program_.wait(blockDim.x); }
// What every thread of the warp tells; `heard_` when it is not wanted any more.
static uint32_t (*tell_(const uint32_t* words, int count))[8] {
    const int warp = threadIdx.x / 32;
    memcpy(told_[warp][threadIdx.x % 32], words, 4 * count);
    warps_[warp].wait(32);
    return told_[warp];
}
static void heard_() { warps_[threadIdx.x / 32].wait(32); }
static float __shfl_xor_sync(uint32_t, float value, int step) {
    const uint32_t word = __float_as_uint(value);
    const float other = __uint_as_float(tell_(&word, 1)[(threadIdx.x % 32) ^ step][0]);
    heard_();
    return other;
}

// In the place of functions that are assembly.
static float half_value(uint16_t h) { return same_bits_<_Float16>(&h); }
static uint16_t half_(float f) {
    const _Float16 h = (_Float16)f;
    return same_bits_<uint16_t>(&h);
}
static uint16_t bfloat_(float f) {
    if (isnan(f)) return 0x7fff;
    const uint32_t u = __float_as_uint(f);
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
static float byte_(uint8_t b) {
    const int exponent = b >> 3 & 15, rest = b & 7;
    const float size = exponent ? ldexpf(8 + rest, exponent - 10) : ldexpf(rest, -9);
    return exponent == 15 && rest == 7 ? NAN : b & 128 ? -size : size;
}
static uint16_t narrow(float f) { return BFLOAT ? bfloat_(f) : half_(f); }
static uint32_t narrow_pair(float low, float high) { return narrow(low) | (uint32_t)narrow(high) << 16; }
static uint32_t half_pair(float low, float high) { return half_(low) | (uint32_t)half_(high) << 16; }
static uint32_t wide(uint16_t bytes) { return half_pair(byte_((uint8_t)bytes), byte_(bytes >> 8)); }
static int thread_number() { return threadIdx.x; }
static void __threadfence_block() {}
static void wait_for_input() {}
static void begin_next() {}
static char anchor_[1 << 18] __attribute__((aligned(1024)));  // what a launch asks for of shared memory is here
static uint32_t shared_address(const void* p) { return (uint32_t)((intptr_t)p - (intptr_t)anchor_); }
// Copies of a thread that are not there before it says so.
struct Copy_ {
    char* to;
    const uint8_t* from;
    int size, there;
};
static std::vector<Copy_> copies_[MOST_];
static void copy_(uint32_t to, const uint8_t* from, int size, int there) {
    if (to % size || (there && (uintptr_t)from % size)) __builtin_trap();
    copies_[threadIdx.x].push_back({anchor_ + (int32_t)to, from, size, there});
}
static void copy_16(uint32_t to, const uint8_t* from, int there) { copy_(to, from, 16, there); }
static void copy_8(uint32_t to, const uint8_t* from, int there) { copy_(to, from, 8, there); }
static void add_product(const uint32_t (&left)[4], uint32_t right0, uint32_t right1, float (&out)[4]) {
    const uint32_t words[6] = {left[0], left[1], left[2], left[3], right0, right1};
    const auto all = tell_(words, 6);
    const auto at = [&](int lane, int word, int k) { return half_value((uint16_t)(all[lane][word] >> 16 * (k & 1))); };
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        double sum = out[i];
        for (int k = 0; k < 16; k++)
            sum += (double)at((g * 4 + k % 8 / 2), (i >> 1) + 2 * (k / 8), k) * at((2 * q + (i & 1)) * 4 + k % 8 / 2, 4 + k / 8, k);
        out[i] = (float)sum;
    }
    heard_();
}
static void add_half_product(const uint32_t (&left)[4], uint2 right, uint32_t (&out)[2]) {
    float made[4] = {half_value((uint16_t)out[0]), half_value((uint16_t)(out[0] >> 16)), half_value((uint16_t)out[1]), half_value((uint16_t)(out[1] >> 16))};
    add_product(left, right.x, right.y, made);
    out[0] = half_pair(made[0], made[1]), out[1] = half_pair(made[2], made[3]);
}
static void add_narrow_product(const uint32_t (&left)[4], uint32_t right, uint32_t (&out)[2]) {
    const uint32_t both[4] = {left[0], left[1], 0, 0};
    add_half_product(both, uint2{right, 0}, out);
}
