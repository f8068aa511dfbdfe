static inline float exp_of(float x) { return expf(x); }

static inline float expm1_of(float x) { return expm1f(x); }

static inline float log_of(float x) { return logf(x); }

static inline float log1p_of(float x) { return log1pf(x); }

static inline float sqrt_of(float x) { return sqrtf(x); }

static inline float sin_of(float x) { return sinf(x); }

static inline float cos_of(float x) { return cosf(x); }

static inline float tanh_of(float x) { return tanhf(x); }

static inline float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

static inline float atan_of(float x) { return atanf(x); }

static inline float erf_of(float x) { return erff(x); }

static inline float erfc_of(float x) { return erfcf(x); }

static inline float pow_of(float x, float y) { return powf(x, y); }

static inline float fmod_of(float x, float y) { return fmodf(x, y); }

static inline float abs_of(float x) { return fabsf(x); }

static inline float floor_of(float x) { return floorf(x); }

static inline float round_of(float x) { return rintf(x); }

static inline float trunc_of(float x) { return truncf(x); }

/* NaN where one of them is. */
static inline float maximum_of(float a, float b) { return a > b || a != a ? a : b; }

static inline float minimum_of(float a, float b) { return a < b || a != a ? a : b; }
