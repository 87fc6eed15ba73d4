// Numbers as they are stored, and what every kernel for compute capability 9.0 begins with. Wants BFLOAT: whether what is narrow
// is bfloat16, and not float16.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

__device__ inline float half_value(u16 h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
__device__ inline float bfloat_value(u16 h) { return __uint_as_float((u32)h << 16); }
__device__ inline float narrow_value(u16 h) { return BFLOAT ? bfloat_value(h) : half_value(h); }
__device__ inline u16 narrow(float f) {
    u16 h;
    if (BFLOAT) asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    else asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
__device__ inline u32 narrow_pair(float low, float high) {
    u32 both;
    if (BFLOAT) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
// Two float8_e4m3 as two float16.
__device__ inline u32 wide(u16 bytes) { u32 both; asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(both) : "h"(bytes)); return both; }
__device__ inline float byte_value(u8 b) { return half_value((u16)wide(b)); }
// TYPE: 0 float32, 1 float16, 2 bfloat16.
__device__ inline float typed_value(const void* p, i64 at, int type) {
    if (type == 0) return ((const float*)p)[at];
    const u16 h = ((const u16*)p)[at];
    return type == 1 ? half_value(h) : bfloat_value(h);
}

__device__ inline u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ inline void wait_for_input() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// What is launched next may begin; it waits for the end of this by itself.
__device__ inline void begin_next() { asm volatile("griddepcontrol.launch_dependents;"); }
