// What warps do that do not multiply where no matrix has single entries, in the place of `hopper_helpers.cu`: rows that nobody adds to.

__device__ inline void help(const Args& a, Shared&, const Ring&, int helper, const u8*) {
    const int first = (helper * gridDim.x + blockIdx.x) * 32 + (threadIdx.x & 31), all = HELPERS * gridDim.x * 32;
    wait_for_input();
    for (int chain = 0; chain < a.n_chains; chain++) {
        if (counts_of(a, chain)[0]) continue;
        for (int row = first; row < rows_of(a, chain); row += all)
            for (int t = 0; t < TOKENS; t++) write_row(a, chain, first_of(a, chain) + row, t, 0.f);
    }
}
