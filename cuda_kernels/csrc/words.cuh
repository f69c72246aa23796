// The words of a body: the bytes of its ids, read as UTF-8 and cut into words. Does the same as `words_of` in
// selfspan_core/engine/tabled_rules.py, its specification. Words are letters, with single joints between two of them.
#pragma once
#include <ptx.cuh>

constexpr int MOST_BODY = 160;  // ids of a body
// Classes of ids, as bits: it ends a sentence; it may stand behind such an id; no body may hold it; it stands for one
// byte, and is no text unless the whole run of such ids is UTF-8.
constexpr int CLASS_ENDS = 1, CLASS_CLOSES = 2, CLASS_UNFIT = 4, CLASS_BYTE = 8;
// Bits of a character above its code: it is part of a word; it may stand between two parts of one.
constexpr int IS_LETTER = 1 << 24, IS_JOINT = 1 << 25, CODE_BITS = IS_LETTER - 1;
constexpr int NUM_CHARACTERS = 0x40000;  // those from here on are part of no word
constexpr int RUN_WORDS = 4;             // words in a row that must not be said twice

// What ids are, for all rows.
struct IdTables {
    const unsigned char* classes;  // [vocab_size]
    const int* starts;             // [vocab_size + 1], of an id's bytes in `text`
    const unsigned char* text;
    const int* characters;  // [NUM_CHARACTERS]: 0, or a code and its bits
};

// A body in shared memory: where its ids' bytes lie, and the first of them.
struct BodyBytes {
    static constexpr int NUM_FIRST = 16;
    int starts[MOST_BODY], sizes[MOST_BODY];
    unsigned char first[MOST_BODY][NUM_FIRST];
    int num;
    const unsigned char* text;
    const int* characters;

    DEVICE int byte(int id, int at) const { return at < NUM_FIRST ? first[id][at] : text[starts[id] + at]; }
};

// A place in a body: of an id, and of a byte in it.
struct BodyPlace {
    int id, at;
};

// Reads characters and words, from the first byte of one on; by one thread.
struct WordReader {
    static constexpr int NOTHING = -1;
    BodyPlace place, word_at;  // the next byte; where the last word began
    int is_open, joint, held;

    DEVICE void begin(BodyPlace from) {
        place = word_at = from;
        is_open = joint = held = 0;
    }

    // The next byte, which stays the next one, or NOTHING.
    DEVICE int peek(const BodyBytes& body) {
        while (place.id < body.num && place.at >= body.sizes[place.id]) place.id++, place.at = 0;
        return place.id < body.num ? body.byte(place.id, place.at) : NOTHING;
    }

    // The next character, or NOTHING. Bytes that are no UTF-8 are the character 0, as much of them at a time as may
    // begin one.
    DEVICE int character(const BodyBytes& body) {
        int lead = peek(body);
        if (lead == NOTHING) return NOTHING;
        place.at++;
        if (lead < 0x80) return lead;
        int num = lead < 0xC2 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF5 ? 3 : 0;
        int low = lead == 0xE0   ? 0xA0
                  : lead == 0xF0 ? 0x90
                                 : 0x80,
            high = lead == 0xED   ? 0x9F
                   : lead == 0xF4 ? 0x8F
                                  : 0xBF;
        int code = lead & (0x3F >> num);
        for (int i = 0; i < num; i++) {
            int next = peek(body);
            if (next < low || next > high) return 0;
            place.at++;
            code = code << 6 | (next & 0x3F);
            low = 0x80, high = 0xBF;
        }
        return num ? code : 0;
    }

    // The code of the next letter of a word; 0 behind a word's last one; NOTHING behind the last word.
    DEVICE int letter(const BodyBytes& body) {
        if (held) {
            int code = held;
            held = 0;
            return code;
        }
        while (true) {
            peek(body);
            BodyPlace from = place;
            int code = character(body), kind = code < 0 || code >= NUM_CHARACTERS ? 0 : body.characters[code];
            if (kind & IS_LETTER) {
                if (!is_open) word_at = from;
                is_open = 1;
                if (!joint) return kind & CODE_BITS;
                held = kind & CODE_BITS;
                int before = joint;
                joint = 0;
                return before;
            }
            if ((kind & IS_JOINT) && is_open && !joint) {
                joint = kind & CODE_BITS;
                continue;
            }
            bool was_open = is_open;
            is_open = joint = 0;
            if (was_open) return 0;
            if (code == NOTHING) return NOTHING;
        }
    }
};

// Sums that tell most words apart; rules.py makes the same.
DEVICE u32 hash_of(u32 hash, u32 next) {
    return (hash ^ next) * 0x01000193u;
}

// Runs of RUN_WORDS words, found one after the other by one thread.
struct RunReader {
    WordReader reader;
    u32 hashes[RUN_WORDS], hash;
    BodyPlace places[RUN_WORDS];
    int num_words;

    DEVICE void begin() {
        reader.begin({0, 0});
        hash = 0, num_words = 0;
    }

    // Whether there is another run; its sum and its place.
    DEVICE bool next(const BodyBytes& body, u32& sum, BodyPlace& place) {
        while (true) {
            int code = reader.letter(body);
            if (code == WordReader::NOTHING) return false;
            if (code > 0) {
                hash = hash_of(hash, (u32)code);
                continue;
            }
            for (int i = 0; i + 1 < RUN_WORDS; i++) hashes[i] = hashes[i + 1], places[i] = places[i + 1];
            hashes[RUN_WORDS - 1] = hash, places[RUN_WORDS - 1] = reader.word_at;
            hash = 0;
            if (++num_words < RUN_WORDS) continue;
            sum = 0, place = places[0];
            for (int i = 0; i < RUN_WORDS; i++) sum = hash_of(sum, hashes[i]);
            return true;
        }
    }
};
