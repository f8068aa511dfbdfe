// For NVRTC, which declares the device's functions itself.
#pragma once
#define __builtin_inff() __int_as_float(0x7F800000)
#define __builtin_nanf(text) __int_as_float(0x7FFFFFFF)
