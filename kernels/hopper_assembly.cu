// What has no name in CUDA C++: barriers, copies, products of bits and of pairs of numbers in half precision, and the registers of
// warp groups.

__device__ inline void barrier_init(u32 b, int n) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(b), "r"(n)); }
__device__ inline void barrier_arrive(u32 b) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(b) : "memory"); }
// Arrive once a word is there that was read from shared memory. To arrive does not wait for reads on their way, and the copy engine, which
// others then let overwrite what was read, does not either: it has been seen to come first where reads of memory held up those of a warp.
// What is added to the address is zero, which the compiler does not know.
__device__ inline void barrier_arrive_after(u32 b, u32 word) { barrier_arrive(b + (word & (blockDim.y - 1))); }
__device__ inline void barrier_expect(u32 b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(u32 b, u32 phase) {
    asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(b), "r"(phase)
                 : "memory");
}
__device__ inline void bulk_copy(u32 to, const u8* from, int bytes, u32 b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(b)
                 : "memory");
}
__device__ inline void show_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void acquire_map(const u8* map) { asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory"); }
// A box of a matrix of bytes, which a map describes, from a column and a row on; what lies past its ends comes as zeros.
__device__ inline void copy_box(u32 to, const u8* map, int column, int row, u32 b) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(b)
                 : "memory");
}
// Loads that are issued where they stand.
__device__ inline int load_int(const int* p) { int word; asm volatile("ld.global.s32 %0, [%1];" : "=r"(word) : "l"(p)); return word; }
__device__ inline i64 load_long(const i64* p) { i64 word; asm volatile("ld.global.s64 %0, [%1];" : "=l"(word) : "l"(p)); return word; }
// Four words where they are wanted, else zeros.
__device__ inline uint4 load_words(const void* p, bool wanted) {
    uint4 q;
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "l"(p), "r"((int)wanted));
    return q;
}
__device__ inline void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// Add to a number that others add to as well, and give what it was.
__device__ inline u64 add_to(u64* p, u64 more) {
    u64 before;
    asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], %2;" : "=l"(before) : "l"(p), "l"(more) : "memory");
    return before;
}
__device__ inline u32 shared_word(u32 address) { u32 w; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(address)); return w; }
__device__ inline uint2 shared_pair(u32 address) { uint2 w; asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "r"(address)); return w; }
__device__ inline u16 shared_short(u32 address) { u16 w; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(w) : "r"(address)); return w; }

__device__ inline u16 shared_byte(u32 address) { u16 w; asm volatile("ld.shared.u8 %0, [%1];" : "=h"(w) : "r"(address)); return w; }
__device__ inline void set_shared_word(u32 address, u32 word) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory"); }
__device__ inline void set_shared_words(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
// What this thread stored in shared memory, the tensor cores see; and what it read or knows to be read, the copy engine may overwrite.
__device__ inline void fence_proxies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The larger ones of two pairs of whole numbers.
__device__ inline u32 largest_pair(u32 left, u32 right) { u32 both; asm("max.u16x2 %0, %1, %2;" : "=r"(both) : "r"(left), "r"(right)); return both; }

// 2·number + more, as additions.
__device__ inline int twice_and(int number, u32 more) { int sum; asm("{ .reg .s32 part; add.s32 part, %1, %2; add.s32 %0, part, %1; }" : "=r"(sum) : "r"(number), "r"(more)); return sum; }
// The sum of two halves of a word, as whole numbers with a sign, and a number: not where logic operations are done.
__device__ inline int halves_and(u32 halves, int number) { int sum; asm("dp2a.lo.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(halves), "r"(0x0101), "r"(number)); return sum; }
// The bits of one where the mask is set, and of the other elsewhere.
__device__ inline u32 chosen(u32 set, u32 other, u32 mask) { u32 bits; asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(bits) : "r"(set), "r"(other), "r"(mask)); return bits; }

// A barrier of all consumers of bits.
__device__ inline void await_makers() { asm volatile("bar.sync 5, 512;" ::: "memory"); }
// Barriers of two warp groups: one waits until the other has arrived.
__device__ inline void await_group(int number) { asm volatile("bar.sync %0, 256;" ::"r"(number) : "memory"); }
__device__ inline void tell_group(int number) { asm volatile("bar.arrive %0, 256;" ::"r"(number) : "memory"); }
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ inline void await_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// After products: the register is not read before.
__device__ inline void settle(u32& sum) { asm volatile("" : "+r"(sum)::"memory"); }
__device__ inline void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 104;"); }
__device__ inline void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 64;"); }

// The number of the thread, which the compiler keeps rather than reads again.
__device__ inline int thread_number() { int number; asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number)); return number; }
__device__ inline u32 half_pair(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
// Add the product of rows of 16 numbers by columns of 16, in half precision.
__device__ inline void add_half_product(const u32 (&left)[4], uint2 right, u32 (&out)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};" : "+r"(out[0]), "+r"(out[1]) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right.x), "r"(right.y));
}
// The same with rows and columns of 8, which are half of `left`.
__device__ inline void add_narrow_product(const u32 (&left)[4], u32 right, u32 (&out)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3}, {%4}, {%0, %1};" : "+r"(out[0]), "+r"(out[1]) : "r"(left[0]), "r"(left[1]), "r"(right));
}
// Copies to shared memory: `there` bytes, and zeros for the rest.
__device__ inline void copy_16(u32 to, const u8* from, int there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there) : "memory");
}
__device__ inline void copy_8(u32 to, const u8* from, int there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(there) : "memory");
}
// Until all copies of this thread are there.
__device__ inline void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Count as one arrival when all copies of this thread are there.
__device__ inline void arrive_copied(u32 b) { asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(b) : "memory"); }
