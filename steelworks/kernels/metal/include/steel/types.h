// The types that kernels compute in, and conversions to and from them.
#pragma once
#include <metal_stdlib>

using namespace metal;

/// A constant of a class: Metal wants an address space there, C++ does not.
#define STEEL_CONSTANT static constant constexpr const

/// Before a loop over registers: an array that is indexed by anything but constants leaves the registers.
#define STEEL_UNROLL _Pragma("clang loop unroll(full)")

namespace steel {

STEEL_CONSTANT int kSimdWidth = 32;
STEEL_CONSTANT int kGroupBytes = 32768;  // threadgroup memory of a threadgroup

/// What sums over T are computed in (I7).
template <typename T> struct Opmath { typedef float type; };
template <> struct Opmath<long> { typedef long type; };
template <> struct Opmath<int> { typedef long type; };
template <> struct Opmath<short> { typedef long type; };
template <> struct Opmath<char> { typedef long type; };
template <> struct Opmath<uchar> { typedef long type; };
template <> struct Opmath<bool> { typedef long type; };
template <typename T> using opmath_t = typename Opmath<T>::type;

/// N elements that lie one behind the other. It asks for the alignment of T only, so that any view can be read by it.
template <typename T, int N> struct Packet { T at[N]; };

/// Elements of T in 16 bytes: what a thread moves in one go.
template <typename T> struct Sixteen { STEEL_CONSTANT int count = 16 / int(sizeof(T)); };

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

}  // namespace steel
