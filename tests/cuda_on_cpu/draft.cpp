// The drafting kernels as functions of a shared library: `library` in tests/support/drafts_on_cpu.py compiles it.
#include <ptx.cuh>

#include <draft.cu>

extern "C" int num_order_words() {
    return sizeof(ReadingOrder) / 4;
}

extern "C" int num_table_edges() {
    return NUM_EDGES;
}

#if HAS_RULES
extern "C" int num_rule_words() {
    return sizeof(RuledRow) / 4;
}

extern "C" int num_limits_words() {
    return sizeof(Limits) / 4;
}
#endif

struct Pointers {
    void* at[32];
};

extern "C" void run_draft(const Pointers* given, int batch, int vocab_size, int text_length, int num_queries,
                          int is_dense, int max_spans, int max_runs, int max_codes) {
    Pointers to = *given;
    std::vector<unsigned> order(batch);
    for (int row = 0; row < batch; row++) order[row] = batch - 1 - row;
    Machine::get().run(order, NUM_THREADS, 0, [=] {
        selfspan_draft((int*)to.at[0], (int*)to.at[1], (short*)to.at[2], (int*)to.at[3], vocab_size, (Track*)to.at[4],
                       (int2*)to.at[5], (ReadingOrder*)to.at[6], (int*)to.at[7], text_length, (int*)to.at[8],
                       (int*)to.at[9], num_queries, is_dense, (i64*)to.at[10], (int*)to.at[11], (int*)to.at[12],
                       (int*)to.at[13], (int2*)to.at[14], (int*)to.at[15], max_spans, (int*)to.at[16]
#if HAS_RULES
                       ,
                       (RuledRow*)to.at[17], (unsigned char*)to.at[18], (int*)to.at[19], (unsigned char*)to.at[20],
                       (int*)to.at[21], (Run*)to.at[22], (int*)to.at[23], (Limits*)to.at[24], max_runs, max_codes
#endif
        );
    });
}

extern "C" void run_accept(const Pointers* given, int num_queries, int script_length, int batch, int text_length,
                           int num_slots, int ring_width) {
    Pointers to = *given;
    Machine::get().run({0}, 32, 0, [=] {
        selfspan_accept((i64*)to.at[0], (i64*)to.at[1], (int*)to.at[2], (int*)to.at[3], num_queries, (short*)to.at[4],
                        (Track*)to.at[5], (int*)to.at[6], script_length, (int*)to.at[7], batch, (int*)to.at[8],
                        text_length, (int*)to.at[9], (int*)to.at[10], (i64*)to.at[11], num_slots, ring_width,
                        (int*)to.at[12]);
    });
}
