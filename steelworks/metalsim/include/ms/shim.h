// The stand-in for Metal's standard library: everything, precompiled into every kernel library.
#pragma once
#include <ms/base.h>
#include <ms/vector.h>
#include <ms/traits.h>
#include <ms/math.h>
#include <ms/pack.h>
#include <ms/simd.h>
#include <ms/matrix.h>
#include <ms/atomics.h>
#include <ms/launch.h>
