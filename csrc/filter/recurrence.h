// The last hidden states of a bidirectional LSTM over table-projected inputs, forward and backward: what a step of the
// path filter's training spends its time in. float32, on the CPU.
//
// An input is one of the layer's operations, so `W_ih x + b` is a row of a table and only `W_hh h` is left to compute.
// Paths that begin alike share rows: a level holds distinct beginnings, and each goes on from a row of the level
// before. Legend: L layers, N operations in the widest layer, H hidden units; gates in torch's order (input, forget,
// cell, output). A gate input that is not finite makes its states not-a-number. Nothing is checked here.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace greedynas::filter {

// The beginnings of paths that end at one layer, a row each.
struct RecurrenceLevel {
  std::int64_t rows;               // at least 1
  const std::int64_t* operations;  // [rows], at this layer
  const std::int64_t* others;      // [rows], of mixed paths the second ones; nullptr: not mixed
  const std::int64_t* parents;     // [rows], in the level before; nullptr: row i goes on from row i
};

struct RecurrenceDirection {
  const float* tables;                  // [L, N, 4H]
  const float* weight;                  // [4H, H]
  std::vector<RecurrenceLevel> levels;  // L; in the second direction the first one is of the last layer
  const std::int64_t* members;          // [paths], the row of each in the last level; nullptr: path i is row i
};

struct Recurrence {
  std::int64_t paths;
  int operations, hidden;  // N, H
  float share;             // of the first operations of mixed paths
  std::array<RecurrenceDirection, 2> directions;
  int threads;
};

struct RecurrenceGradients {
  float* tables;  // as those of RecurrenceDirection; written
  float* weight;
};

// Floats of what the backward pass needs.
std::int64_t kept_floats(const Recurrence& net);

// states: [paths, 2H], both directions' last ones.
void forward(const Recurrence& net, float* kept, float* states);

// grad: of the states.
void backward(const Recurrence& net, const float* kept, const float* grad,
              const std::array<RecurrenceGradients, 2>& gradients);

}  // namespace greedynas::filter
