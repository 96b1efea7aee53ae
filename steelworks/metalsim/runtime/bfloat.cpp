// The compiler calls this to round float to bfloat where the CPU has no instruction for it; older libgcc lacks it.
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
extern "C" __attribute__((visibility("default"))) __bf16 __truncsfbf2(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t kept = static_cast<uint16_t>(bits >> 16);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        kept |= 0x40;  // a NaN stays one
    } else {
        kept = static_cast<uint16_t>((bits + 0x7FFFu + (kept & 1u)) >> 16);  // to nearest, ties to even
    }
    __bf16 result;
    memcpy(&result, &kept, sizeof result);
    return result;
}
#endif
