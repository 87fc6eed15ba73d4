// What has no name in CUDA C++: barriers, copies, products of bits and of pairs of numbers in half precision, and the registers of
// warp groups.

__device__ inline void barrier_init(u32 b, int n) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(b), "r"(n)); }
__device__ inline void barrier_arrive(u32 b) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(b) : "memory"); }
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
__device__ inline void prefetch(const u8* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// Count one more; what this thread knows of is there for who counts later.
__device__ inline int count_one(int* p) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(p) : "memory");
    return before;
}
__device__ inline int shared_value(const int* p) {
    int value;
    asm volatile("ld.acquire.cta.shared.s32 %0, [%1];" : "=r"(value) : "r"(shared_address(p)) : "memory");
    return value;
}
__device__ inline void set_shared(int* p, int value) { asm volatile("st.release.cta.shared.s32 [%0], %1;" ::"r"(shared_address(p)), "r"(value) : "memory"); }
__device__ inline u32 shared_word(u32 address) { u32 w; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(address)); return w; }
__device__ inline u16 shared_short(u32 address) { u16 w; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(w) : "r"(address)); return w; }

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
__device__ inline u32 half_sum(u32 left, u32 right) {
    u32 both;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(both) : "r"(left), "r"(right));
    return both;
}
// Rows of 16 numbers by columns of 16, in half precision.
__device__ inline void half_product(const u32 (&left)[4], u32 right0, u32 right1, u32 (&out)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %8};" : "=r"(out[0]), "=r"(out[1]) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1), "r"(0));
}
// Copies to shared memory: `there` bytes, and zeros for the rest.
__device__ inline void copy_16(u32 to, const u8* from, int there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there) : "memory");
}
__device__ inline void copy_8(u32 to, const u8* from, int there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(there) : "memory");
}
// Count as one arrival when all copies of this thread are there.
__device__ inline void arrive_copied(u32 b) { asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(b) : "memory"); }
