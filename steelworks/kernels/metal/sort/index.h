/* Which element a sorting kernel touches. A subset of C: the kernels and the proofs include it. */
#pragma once

/* Runs of `width` sorted elements are merged two by two. The pair that element `first` belongs to begins here: */
static inline int sort_pair_begin(int first, int width) { return first / (2 * width) * (2 * width); }
/* `by` elements behind `begin`, or the end of what there is. */
static inline int sort_edge(int begin, int by, int length) { return length - begin < by ? length : begin + by; }

/* Of the first `diagonal` elements of two merged runs: the least and the most that can come from the first run. */
static inline int sort_least_of_first(int diagonal, int second) { return diagonal - second > 0 ? diagonal - second : 0; }
static inline int sort_most_of_first(int diagonal, int first) { return diagonal < first ? diagonal : first; }

/* Pair `at` < length of a row of dense (rows, length) keys and places. */
static inline long sort_pair(int row, int at, int length) { return (long)row * length + at; }

/* Where element `at` of a tile lies in its row: the first `firsts` are of one run, the others of the next. */
static inline int sort_source(int at, int firsts, int first_from, int second_from) {
  return at < firsts ? first_from + at : second_from + (at - firsts);
}
